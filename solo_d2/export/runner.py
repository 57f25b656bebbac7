"""Run an exported model with NumPy, OpenCV and ONNX Runtime or OpenVINO, without torch.

    detector = Detector.load("model.onnx")
    for found in detector(["photo.jpg"]):
        print(found["scores"], [detector.info.class_names[k] for k in found["classes"]])

All settings of the model are in the file's metadata. Images are resized exactly as in Detectron2,
which uses Pillow (`solo_d2.export.pixels`); files are decoded by OpenCV (`solo_d2.export.reading`).

B images, D detections of the graph, N those of an image, H W rows and columns.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solo_d2.export.pixels import (
    input_size,
    mask_boxes,
    paste_masks,
    resize_image,
    sample_positions,
    stack_positions,
)
from solo_d2.export.reading import read_image
from solo_d2.export.runtimes import Arrays, open_session

# Inputs and outputs of the graph; with soft masks, without `rows`, `columns` and `boxes`.
INPUTS = ("images", "image_sizes", "rows", "columns")
_OUTPUTS = ("scores", "classes", "masks", "num_detections", "num_candidates", "boxes")


@dataclass(frozen=True)
class ModelInfo:
    """Settings of an exported model and its classes, stored as metadata under the field names."""

    class_names: list[str]  # by class index
    class_ids: list[Any]  # category id of each class in the json of its data set
    input_format: str  # channel order of the graph's input, "BGR" or "RGB"
    pixel_mean: list[float]  # in that order; subtracted by the graph
    pixel_std: list[float]  # in that order; the graph divides by it
    min_size: int  # length to which the short side of images is resized; 0 for no resizing
    max_size: int  # maximum length of the long side
    size_divisor: int  # divisor of the sides of the padded input
    square_size: int  # side of the padded input if it must be square, else 0
    mask_stride: int  # stride of the soft masks in input pixels
    soft_masks: bool  # whether the graph omits the final resize
    precision: str  # "float32", "float16" or "int8"
    topk: int  # number of candidates whose masks are computed
    pre_nms_topk: int  # maximum number of candidates that enter NMS
    max_detections: int  # D
    score_thresh: float  # minimum class probability of a candidate
    mask_thresh: float  # minimum probability of a mask's pixel
    keep_thresh: float  # minimum score of a detection

    def to_metadata(self) -> dict[str, str]:
        """Return every field as json, by name."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> "ModelInfo":
        """Read the result of `to_metadata`; other keys are ignored.

        Raises:
            ValueError: a field of `source` is missing or invalid.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in metadata]
        if missing:
            raise ValueError(
                f"{source} is no file of tools/export_model.py: its metadata lacks "
                f"{', '.join(missing)}"
            )
        try:
            values = {name: json.loads(metadata[name]) for name in names}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: its metadata are damaged: {error}") from error
        wrong = [name for name in names if not _POSSIBLE[name](values[name])]
        if not wrong and len(values["class_names"]) != len(values["class_ids"]):
            wrong = ["class_ids"]
        if wrong:
            raise ValueError(
                f"{source}: the metadata has an invalid {wrong[0]}: {metadata[wrong[0]]:.80}"
            )
        return cls(**values)


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and value != [] and all(type(x) in kinds for x in value)
    )


def _is_color(value: Any) -> bool:
    return _list_of(int, float)(value) and len(value) == 3 and all(abs(x) < np.inf for x in value)


def _is_threshold(value: Any) -> bool:
    return type(value) in (int, float) and -1 <= value <= 1


# Tests for valid values, by field. An untrusted file must not request unlimited memory.
_SIDE, _COUNT = 2**13, 2**31
_POSSIBLE: dict[str, Callable[[Any], bool]] = {
    "class_names": _list_of(str),
    "class_ids": _list_of(int, str),
    "input_format": lambda value: value in ("BGR", "RGB"),
    **dict.fromkeys(("pixel_mean", "pixel_std"), _is_color),
    **dict.fromkeys(("min_size", "square_size"), _whole(0, _SIDE)),
    "max_size": _whole(0, _COUNT),
    **dict.fromkeys(("size_divisor", "mask_stride"), _whole(1, _SIDE)),
    "soft_masks": lambda value: type(value) is bool,
    "precision": lambda value: type(value) is str,
    **dict.fromkeys(("topk", "pre_nms_topk", "max_detections"), _whole(1, _COUNT)),
    **dict.fromkeys(("score_thresh", "mask_thresh", "keep_thresh"), _is_threshold),
}


class Detector:
    """An exported model, ready for images of any size."""

    def __init__(self, run: Callable[[Arrays], Arrays], info: ModelInfo):
        """Wrap a graph that maps inputs by name to outputs by name."""
        self.run, self.info = run, info

    @classmethod
    def load(cls, path: str | Path, runtime: str = "onnxruntime", **options: Any) -> "Detector":
        """Load an ONNX file, which determines the computation and its memory.

        Args:
            path: the file.
            runtime: "onnxruntime" or "openvino".
            options: threads, providers and properties, see `open_session`.

        Raises:
            ValueError: the runtime is not installed, or the file is missing, no ONNX model, or not
                exported by this project.
        """
        session = open_session(path, runtime, **options)
        info = ModelInfo.from_metadata(session.metadata, str(path))
        inputs, outputs = (INPUTS[:2], _OUTPUTS[:-1]) if info.soft_masks else (INPUTS, _OUTPUTS)
        if set(session.inputs) != set(inputs) or not set(outputs) <= set(session.outputs):
            raise ValueError(f"{path}: its inputs and outputs do not match its metadata")
        return cls(session.run, info)

    def __call__(
        self,
        images: Sequence[str | Path | NDArray[np.uint8]],
        *,
        channel_order: str = "RGB",
        score_thresh: float = 0.0,
    ) -> list[Arrays]:
        """Find the instances of images, in one batch.

        Args:
            images: paths of files, or (H, W, 3) uint8.
            channel_order: channel order of arrays, "RGB" or "BGR".
            score_thresh: minimum score of results, in addition to the model's threshold.

        Returns:
            For each image, best first: scores (N,) float32, classes (N,) int64, boxes (N, 4)
            float32 (XYXY in pixels, right and lower edge exclusive), masks (N, H, W) bool; and
            num_candidates, see `detect`.

        Raises:
            ValueError: a file cannot be read, an array is no image, or the outputs of the graph are
                invalid.
        """
        inputs, output_sizes = [], []
        for image in images:
            if isinstance(image, np.ndarray):
                pixels, order = _require_image(image), channel_order
            else:
                pixels, order = read_image(image), "BGR"
            output_sizes.append((pixels.shape[0], pixels.shape[1]))
            if order != self.info.input_format:
                pixels = pixels[:, :, ::-1]
            size = input_size(output_sizes[-1], self.info.min_size, self.info.max_size)
            inputs.append(resize_image(pixels, size))
        return self.detect(inputs, output_sizes, score_thresh=score_thresh)

    def detect(
        self,
        images: Sequence[NDArray[np.uint8]],
        output_sizes: Sequence[tuple[int, int]],
        *,
        score_thresh: float = 0.0,
    ) -> list[Arrays]:
        """Find the instances of images in the model's size and channel order.

        Args:
            images: (H, W, 3) uint8 each.
            output_sizes: height and width of the results of each image.
            score_thresh: see `__call__`.

        Returns:
            See `__call__`; num_candidates, () int64, is the number of (cell, class) pairs above the
            score threshold. Only the best `info.topk` of them are processed.
        """
        if not images:
            return []
        outputs = self.run(self.graph_inputs(images, output_sizes))
        self._require_possible(outputs, output_sizes)
        results = []
        for index, (image, size) in enumerate(zip(images, output_sizes, strict=True)):
            found = {name: value[index] for name, value in outputs.items()}
            scores = found["scores"]
            # Scores are non-increasing.
            count = min(int(found["num_detections"]), int((scores >= score_thresh).sum()))
            masks = found["masks"][:count]
            if self.info.soft_masks:
                stride, thresh = self.info.mask_stride, self.info.mask_thresh
                masks = paste_masks(masks, stride, image.shape[:2], size, thresh)
                boxes = mask_boxes(masks)
            else:
                masks, boxes = masks[:, : size[0], : size[1]], found["boxes"][:count]
            result = {"scores": scores[:count], "classes": found["classes"][:count], "boxes": boxes}
            results.append(result | {"masks": masks, "num_candidates": found["num_candidates"]})
        return results

    def graph_inputs(
        self, images: Sequence[NDArray[np.uint8]], output_sizes: Sequence[tuple[int, int]]
    ) -> Arrays:
        """Return the inputs of the graph, by name, for a batch; see `detect`."""
        image_sizes = [(image.shape[0], image.shape[1]) for image in images]
        batch = np.zeros((len(images), 3, *self.padded_size(image_sizes)), np.uint8)
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        inputs: Arrays = {"images": batch, "image_sizes": np.array(image_sizes, np.int64)}
        if not self.info.soft_masks:
            for axis, name in enumerate(("rows", "columns")):
                sides = [(a[axis], b[axis]) for a, b in zip(image_sizes, output_sizes, strict=True)]
                inputs[name] = stack_positions([sample_positions(*pair) for pair in sides])
        return inputs

    def padded_size(self, image_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return height and width of the padded batch."""
        divisor, square = self.info.size_divisor, self.info.square_size
        longest = [square or max(sides) for sides in zip(*image_sizes, strict=True)]
        height, width = (-(-side // divisor) * divisor for side in longest)
        return height, width

    def _require_possible(self, outputs: Arrays, output_sizes: Sequence[tuple[int, int]]) -> None:
        """Raise a ValueError for indices out of range or arrays with inconsistent shapes."""
        shape, count = outputs["scores"].shape, len(output_sizes)
        shapes = {"classes": shape, "num_detections": (count,), "num_candidates": (count,)}
        masks = outputs["masks"].shape
        fit = len(shape) == 2 and shape[0] == count and masks[:2] == shape
        if not self.info.soft_masks:
            shapes["boxes"] = (*shape, 4)
            fit = (
                fit and len(masks) == 4 and bool((masks[2:] >= np.max(output_sizes, axis=0)).all())
            )
        fit = fit and all(outputs[name].shape == wanted for name, wanted in shapes.items())
        if fit:
            limits = {"num_detections": shape[1], "classes": len(self.info.class_names) - 1}
            in_range = ((0 <= outputs[x]) & (outputs[x] <= most) for x, most in limits.items())
            fit = all(flags.all() for flags in in_range)
        if not fit:
            raise ValueError("the model's outputs do not fit its metadata: it is damaged")


def _require_image(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return image
