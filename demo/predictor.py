"""A model with its weights, ready for single images, and what its classes are called."""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from numpy.typing import NDArray

from solo_d2 import ConfigError, DatasetError
from solo_d2.data.catalog import register_datasets_of_config
from solo_d2.data.coco_format import read_class_names
from solo_d2.modeling.checkpointer import SOLOCheckpointer


class _StrictCheckpointer(SOLOCheckpointer):
    """Refuses a checkpoint that does not fill the whole model; the base class only logs it."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        wrong = incompatible.incorrect_shapes
        for key, found, wanted in wrong:
            if "class_logits" in key and found[0] != wanted[0]:
                raise ConfigError(
                    f"they are for {found[0]} classes, but the model has {wanted[0]}: set "
                    f"MODEL.SOLO.NUM_CLASSES to {found[0]}, or take the config saved beside them"
                )
        if wrong:
            key, found, wanted = wrong[0]
            raise ConfigError(
                f"{len(wrong)} parameters have other shapes than in the config's model, "
                f"for example {key}: {tuple(found)} instead of {tuple(wanted)}"
            )
        missing = incompatible.missing_keys
        if missing:
            raise ConfigError(
                f"{len(missing)} parameters of the config's model are not in them, for example "
                f"{missing[0]}: they are no trained checkpoint of it"
            )


class Predictor:
    """A model with its weights, and the resizing of its inputs."""

    def __init__(self, cfg: CfgNode):
        """Build the model and load its weights.

        Args:
            cfg: with MODEL.WEIGHTS, MODEL.DEVICE and MODEL.SOLO.NUM_CLASSES filled in.

        Raises:
            ConfigError: the model can't be built, or the weights are not all of it.
        """
        self.input_format = cfg.INPUT.FORMAT
        self.min_size, self.max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        try:
            self.model = build_model(cfg.clone()).eval()
        except (KeyError, ValueError, AssertionError) as error:  # ConfigError is a ValueError
            reason = str(error) if isinstance(error, ConfigError) else first_line(error)
            raise ConfigError(f"The config's model cannot be built: {reason}") from error
        _StrictCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> Instances:
        """Find the instances of an image (H, W, 3) uint8 RGB; the result is on the CPU."""
        height, width = image.shape[:2]
        pixels = image[:, :, ::-1] if self.input_format == "BGR" else image
        size = (height, width)
        if self.min_size > 0:
            size = T.ResizeShortestEdge.get_output_shape(
                height, width, self.min_size, self.max_size
            )
        size = tuple(max(1, side) for side in size)  # very long images
        pixels = T.ResizeTransform(height, width, *size).apply_image(np.ascontiguousarray(pixels))
        tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
        output = self.model([{"image": tensor, "height": height, "width": width}])[0]
        return output["instances"].to("cpu")


def first_line(error: BaseException) -> str:
    """An exception on one line."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"


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
        print(f"Class names: {error}", file=sys.stderr)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name not in MetadataCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes") or _names_in_json(metadata.get("json_file"))
        if names is not None and len(names) == count:
            return Classes(list(names), _json_ids(metadata, count))
    return Classes([f"class {index}" for index in range(count)], list(range(count)))


def _names_in_json(json_file: str | None) -> list[str] | None:
    if json_file is None or not os.path.isfile(json_file):
        return None
    try:
        return read_class_names(json_file)
    except DatasetError as error:
        print(f"Class names: {error}", file=sys.stderr)
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
