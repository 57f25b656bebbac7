"""Run a model with PyTorch or, if it is exported, with ONNX Runtime or OpenVINO.

H and W are rows and columns. Images are (H, W, 3) uint8 RGB.
"""

import copy
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

from solo_d2.api.classes import Classes, find_classes, find_stuff
from solo_d2.api.loading import load_model
from solo_d2.export.onnx_model import load_detector, to_instances
from solo_d2.export.pixels import input_size, resize_image
from solo_d2.inference import build_nms
from solo_d2.modeling.speed import SpeedOptions, speed_up
from solo_d2.modeling.tiles import Tiles
from solo_d2.utils.errors import ConfigError

Image = NDArray[np.uint8]


def model_input(image: Image, size: tuple[int, int], input_format: str) -> dict[str, Any]:
    """Make Detectron2's input of an image; results have the size of the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: height and width of the network's input.
        input_format: "BGR" or "RGB".
    """
    height, width = image.shape[:2]
    pixels = image[:, :, ::-1] if input_format == "BGR" else image
    pixels = T.ResizeTransform(height, width, *size).apply_image(np.ascontiguousarray(pixels))
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return {"image": tensor, "height": height, "width": width}


class TorchBackend:
    """A PyTorch model with its weights, and the resizing of its inputs.

    Attributes:
        classes: names and ids of the classes.
        stuff: names and ids of stuff; None if the model is not panoptic.
        contours: whether the masks are contours.
        tiles: the config's tiles for large images; None for no tiles.
        min_size: short side of inputs in pixels; 0 for no resizing.
        max_size: maximum long side in pixels.
        keep_thresh: minimum score of the model's own results.
    """

    def __init__(self, cfg: CfgNode):
        """Build the model and load its weights.

        Args:
            cfg: config completed by `solo_d2.api.loading.complete_config`.
        """
        self.lock = threading.Lock()
        self.model = load_model(cfg)
        speed_up(self.model, SpeedOptions.from_config(cfg))
        self.classes = find_classes(cfg)
        self.stuff = find_stuff(cfg, self.classes)
        self.contours = cfg.MODEL.SOLO.MASK_TARGET == "contour"
        self.tiles = Tiles.from_config(cfg)
        self.keep_thresh = float(cfg.MODEL.SOLO.KEEP_THRESH_TEST)
        self.input_format = cfg.INPUT.FORMAT
        self.min_size, self.max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())

    def with_nms(self, name: str, params: Mapping[str, Any]) -> "TorchBackend":
        """Return a copy that shares weights and lock but uses another NMS, see `build_nms`."""
        other = copy.copy(self)
        other.lock, other.model = self.lock, copy.copy(self.model)
        other.model.decoder_params = self.model.decoder_params | {"nms": build_nms(name, params)}
        return other

    def prepare(self, image: Image) -> dict[str, Any]:
        """Make the network's input of an image, on the host."""
        height, width = image.shape[:2]
        size = input_size((height, width), self.min_size, self.max_size)
        return model_input(image, size, self.input_format)

    def padded_size(self, prepared: dict[str, Any]) -> tuple[int, int]:
        """Return height and width of an input after padding, if it is alone in its batch.

        The grid covers the padded input, so inputs of one padded size give the same results in a
        batch as alone.
        """
        backbone = self.model.backbone
        square = backbone.padding_constraints.get("square_size", 0)
        if square:
            return square, square
        step = max(1, backbone.size_divisibility)
        height, width = (-(-side // step) * step for side in prepared["image"].shape[-2:])
        return height, width

    def run(
        self, batch: Sequence[dict[str, Any]], score_thresh: float | None
    ) -> list[dict[str, Any]]:
        """Run inputs of one padded size in one batch.

        Args:
            batch: inputs made by `prepare`.
            score_thresh: minimum score, if above the model's own; None for the model's own.

        Returns:
            Detectron2's outputs, on the model's device.
        """
        with self.lock, torch.no_grad():
            outputs: list[dict[str, Any]] = self.model(list(batch), score_thresh=score_thresh)
        return outputs


class OnnxBackend:
    """An exported model, with the interface of `TorchBackend`."""

    stuff: Classes | None = None
    contours = False
    tiles: Tiles | None = None

    def __init__(self, path: str | Path, runtime: str = "onnxruntime"):
        """Load the model.

        Args:
            path: file written by tools/export_model.py.
            runtime: "onnxruntime" or "openvino".

        Raises:
            ConfigError: the model cannot be loaded.
        """
        self.path, self.runtime = os.path.abspath(path), runtime
        self.detector = load_detector(path, runtime)
        info = self.detector.info
        self.classes = Classes(info.class_names, info.class_ids)
        self.min_size, self.max_size = info.min_size, info.max_size
        self.keep_thresh = info.keep_thresh

    def __reduce__(self) -> tuple[Any, ...]:
        # Sessions cannot be pickled.
        return type(self), (self.path, self.runtime)

    def prepare(self, image: Image) -> tuple[Image, tuple[int, int]]:
        """Resize an image in the model's channel order; also return its original size."""
        info = self.detector.info
        height, width = image.shape[:2]
        size = input_size((height, width), self.min_size, self.max_size)
        pixels = image[:, :, ::-1] if info.input_format == "BGR" else image
        return resize_image(pixels, size), (height, width)

    def padded_size(self, prepared: tuple[Image, tuple[int, int]]) -> tuple[int, int]:
        """See `TorchBackend`."""
        height, width = prepared[0].shape[:2]
        return self.detector.padded_size([(height, width)])

    def run(
        self, batch: Sequence[tuple[Image, tuple[int, int]]], score_thresh: float | None
    ) -> list[dict[str, Any]]:
        """See `TorchBackend`; the results are on the CPU.

        Raises:
            ConfigError: the model cannot be run, or its output is invalid.
        """
        pixels, sizes = zip(*batch, strict=True)
        try:
            found = self.detector.detect(pixels, sizes, score_thresh=score_thresh or 0.0)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return [
            {"instances": to_instances(arrays, size)}
            for arrays, size in zip(found, sizes, strict=True)
        ]


Backend = TorchBackend | OnnxBackend
