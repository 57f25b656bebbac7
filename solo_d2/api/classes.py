"""Find the names and category ids of the classes of a model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from solo_d2.config.models import is_panoptic
from solo_d2.data.catalog import register_datasets_of_config
from solo_d2.data.classes import (
    Category,
    dataset_categories,
    model_categories,
    placeholder_names,
    stuff,
    things,
)
from solo_d2.utils.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: names by class index.
        json_ids: category ids by class index, integers or strings.
    """

    names: list[str]
    json_ids: list[Any]

    @classmethod
    def of(cls, categories: Sequence[Category]) -> "Classes":
        """Take the names and ids of categories."""
        return cls([x["name"] for x in categories], [x["id"] for x in categories])


def find_classes(cfg: CfgNode) -> Classes:
    """Find the names and category ids of the thing classes.

    They come from MODEL.CLASSES or, if that is empty, from the metadata of the config's data sets.
    If both are unknown, the names are "class 0", "class 1", ... and the ids 0, 1, ..., with a
    warning.
    """
    count = cfg.MODEL.SOLO.NUM_CLASSES
    found = next((things(x) for x in _candidates(cfg) if len(things(x)) == count), None)
    if found is not None:
        return Classes.of(found)
    logger.warning(
        "The names and category ids of the model's %d classes are unknown: neither the checkpoint, "
        "MODEL.CLASSES nor a data set of the config has them. Results use 'class 0', ... and the "
        "category ids 0 to %d",
        *(count, count - 1),
    )
    return Classes(placeholder_names(count), list(range(count)))


def find_stuff(cfg: CfgNode, things: Classes) -> Classes | None:
    """Find the names and category ids of the stuff labels; None if the model is not panoptic.

    If they are unknown, the names are "stuff 1", "stuff 2", ... and the ids follow those of the
    things, with a warning. The first entry is label 0, all things.
    """
    if not is_panoptic(cfg):
        return None
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - 1
    found = next((stuff(x) for x in _candidates(cfg) if len(stuff(x)) == count), None)
    if found is None:
        last = max((key for key in things.json_ids if not isinstance(key, str)), default=0)
        numbers = range(1, count + 1)
        found = [{"name": f"stuff {n}", "id": last + n, "isthing": 0} for n in numbers]
        logger.warning(
            "The names and category ids of the model's %d stuff classes are unknown: results use "
            "'stuff 1', ... and the category ids %d to %d",
            *(count, last + 1, last + count),
        )
    classes = Classes.of(found)
    return Classes(["things", *classes.names], [0, *classes.json_ids])


def _candidates(cfg: CfgNode) -> list[list[Category]]:
    """Return MODEL.CLASSES or, if empty, the classes of the config's data sets."""
    own = model_categories(cfg)
    if own:
        return [own]
    try:
        register_datasets_of_config(cfg)
    except ConfigError as error:
        # A name registered for other files has their classes.
        logger.warning("Class names: %s", error)
        return []
    found = []
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name in DatasetCatalog:
            try:
                found.append(dataset_categories(name))
            except DatasetError as error:
                logger.warning("Class names: %s", error)
    return found
