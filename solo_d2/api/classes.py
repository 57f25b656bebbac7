"""What the classes of a model are called, and their ids in the json of its data set."""

import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from solo_d2.data.catalog import register_datasets_of_config
from solo_d2.data.coco_format import read_class_names
from solo_d2.data.panoptic_format import fill_metadata
from solo_d2.data.stuff_classes import is_panoptic
from solo_d2.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: by class index.
        json_ids: the category id of each class in its data set's json.
    """

    names: list[str]
    json_ids: list[int]


def find_classes(cfg: CfgNode) -> Classes:
    """Names and json ids of the classes, from metadata or a json; no data set is loaded or made.

    Where they are unknown the names are "class 0", "class 1", ... and the ids 0, 1, ...
    """
    count = cfg.MODEL.SOLO.NUM_CLASSES
    try:
        register_datasets_of_config(cfg)
    except ConfigError as error:
        logger.warning("Class names: %s", error)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name not in MetadataCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes") or _names_in_json(metadata.get("json_file"))
        if names is not None and len(names) == count:
            return Classes(list(names), _json_ids(metadata, count))
    return Classes([f"class {index}" for index in range(count)], list(range(count)))


def find_stuff(cfg: CfgNode, things: Classes) -> Classes | None:
    """Names and category ids of the labels of stuff, from metadata; None for other models.

    Where they are unknown the names are "stuff 1", "stuff 2", ..., and the ids follow those of
    things. The first entry stands for label 0, all things.
    """
    if not is_panoptic(cfg):
        return None
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name not in MetadataCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        if metadata.get("panoptic_json") is not None:
            try:
                fill_metadata(name)
            except DatasetError as error:
                logger.warning("Names of stuff: %s", error)
        names = metadata.get("stuff_classes")
        labels = metadata.get("stuff_dataset_id_to_contiguous_id")
        if names is not None and labels is not None and len(names) == count:
            ids = {label: json_id for json_id, label in labels.items()}
            return Classes(list(names), [ids[label] for label in range(count)])
    names = ["things", *(f"stuff {label}" for label in range(1, count))]
    last = max(things.json_ids)
    return Classes(names, list(range(last, last + count)))


def _names_in_json(json_file: str | None) -> list[str] | None:
    if json_file is None or not os.path.isfile(json_file):
        return None
    try:
        return read_class_names(json_file)
    except DatasetError as error:
        logger.warning("Class names: %s", error)
        return None


def _json_ids(metadata: Any, count: int) -> list[int]:
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if contiguous is not None:
        return [json_id for json_id, _ in sorted(contiguous.items(), key=lambda item: item[1])]
    if metadata.get("evaluator_type") == "lvis":  # Detectron2 keeps no map: ids start at 1
        return list(range(1, count + 1))
    json_file = metadata.get("json_file")
    if json_file is not None and os.path.isfile(json_file):
        with open(json_file, encoding="utf-8") as file:
            return sorted(category["id"] for category in json.load(file)["categories"])
    return list(range(count))
