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
from solo_d2.export.agreement import to_instances
from solo_d2.export.packages import require_packages
from solo_d2.export.runner import Detector
from solo_d2.modeling.checkpointer import SOLOCheckpointer


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
        self.contours = cfg.MODEL.SOLO.MASK_TARGET == "contour"
        self.min_size, self.max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        try:
            self.model = build_model(cfg.clone()).eval()
        except (KeyError, ValueError, AssertionError) as error:  # ConfigError is a ValueError
            reason = str(error) if isinstance(error, ConfigError) else first_line(error)
            raise ConfigError(f"The config's model cannot be built: {reason}") from error
        SOLOCheckpointer(self.model, whole=True).load(cfg.MODEL.WEIGHTS)

    def __call__(self, image: NDArray[np.uint8]) -> Instances:
        """Find the instances of an image (H, W, 3) uint8 RGB; the result is on the CPU."""
        return self.predict(image)["instances"].to("cpu")

    @torch.no_grad()
    def predict(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """All that the model says of an image (H, W, 3) uint8 RGB, on the model's device."""
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
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


class OnnxPredictor:
    """The same for an exported model, which knows its classes and how its inputs are resized."""

    contours = False

    def __init__(self, path: str, score_thresh: float):
        """Load the model.

        Args:
            path: what tools/export_model.py wrote.
            score_thresh: least score of what is returned.

        Raises:
            ConfigError: it cannot be loaded.
        """
        require_packages("onnxruntime")
        try:
            self.detector = Detector.load(path)
        except ValueError as error:
            raise ConfigError(f"--onnx: {error}") from error
        info = self.detector.info
        self.classes = Classes(info.class_names, info.class_ids)
        self.score_thresh = score_thresh

    def predict(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """The instances in an image (H, W, 3) uint8 RGB."""
        found = self.detector([image], score_thresh=self.score_thresh)[0]
        return {"instances": to_instances(found, image.shape[:2])}


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
