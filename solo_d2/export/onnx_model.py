"""Detectron2's inputs and outputs for exported models, and the packages they need."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray

from solo_d2.export.runner import Arrays, Detector
from solo_d2.utils.errors import ConfigError


def require_packages(*names: str) -> None:
    """Raise a ConfigError if packages are missing, with the command to install them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The package {' and '.join(missing)} is missing: pip install 'solo_d2[export]'"
        )


def load_detector(path: str | Path, runtime: str = "onnxruntime", *, threads: int = 0) -> Detector:
    """Call `Detector.load`; ConfigError if the file is invalid or a package is missing."""
    try:
        return Detector.load(path, runtime, threads=threads)
    except ValueError as error:
        raise ConfigError(str(error)) from error


class OnnxModel:
    """Detector with the inputs and outputs of a SOLO model in inference, on the CPU."""

    def __init__(self, detector: Detector):
        self.detector = detector

    def __call__(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """Infer, on Detectron2's inputs with integer-valued "image" (3, H, W) in [0, 255]."""
        images, sizes = detector_inputs(batched_inputs)
        found = zip(self.detector.detect(images, sizes), sizes, strict=True)
        return [{"instances": to_instances(arrays, size)} for arrays, size in found]


def to_instances(found: Arrays, size: tuple[int, int]) -> Instances:
    """Convert the results of a detector, with masks of size (height, width), for Detectron2."""
    names = ("masks", "boxes", "scores", "classes")
    masks, boxes, scores, classes = (
        torch.from_numpy(np.ascontiguousarray(found[name])) for name in names
    )
    return Instances(
        size, pred_masks=masks, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
    )


def detector_inputs(
    batched_inputs: Sequence[Mapping[str, Any]],
) -> tuple[list[NDArray[np.uint8]], list[tuple[int, int]]]:
    """Return images (H, W, 3) and output sizes from Detectron2's inputs."""
    images = [x["image"].permute(1, 2, 0).byte().numpy() for x in batched_inputs]
    sizes = [
        (x.get("height", image.shape[0]), x.get("width", image.shape[1]))
        for x, image in zip(batched_inputs, images, strict=True)
    ]
    return images, sizes
