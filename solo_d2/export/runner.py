"""Run an exported model with NumPy, OpenCV and ONNX Runtime: neither torch nor Detectron2.

    detector = Detector.load("model.onnx")
    for found in detector(["photo.jpg"]):
        print(found["scores"], [detector.info.class_names[k] for k in found["classes"]])

All the model's settings are in the file's metadata. Images become the same pixels as in Detectron2,
whose resizing is Pillow's (`solo_d2.export.pixels`); only the decoding of files is OpenCV's
(`solo_d2.export.reading`).

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

Arrays = dict[str, NDArray[Any]]

# What the graph takes and gives; with soft masks without the last ones.
_INPUTS = ("images", "image_sizes", "rows", "columns")
_OUTPUTS = ("scores", "classes", "masks", "num_detections", "num_candidates", "boxes")
# Least and most of the metadata's whole numbers: a file of anybody shall not ask for any memory.
_MOST_SIDE, _MOST = 2**13, 2**31
_LIMITS = {
    "min_size": (0, _MOST_SIDE),
    "max_size": (0, _MOST),
    "size_divisor": (1, _MOST_SIDE),
    "square_size": (0, _MOST_SIDE),
    "mask_stride": (1, _MOST_SIDE),
    "topk": (1, _MOST),
    "pre_nms_topk": (1, _MOST),
    "max_detections": (1, _MOST),
}
_THRESHOLDS = ("score_thresh", "mask_thresh", "keep_thresh")


@dataclass(frozen=True)
class ModelInfo:
    """What a model needs to be told and what its results mean; each field is in its metadata.

    Attributes:
        class_names: by class index.
        class_ids: category id of each class in its data set's json.
        input_format: channel order that the graph expects, "BGR" or "RGB".
        pixel_mean: the graph subtracts it, in that order.
        pixel_std: and divides by it.
        min_size: length that images are resized to on their short side; 0 for no resizing.
        max_size: most length of the long side then.
        size_divisor: the sides of the padded input are multiples of it.
        square_size: side of a padded input that must be square; 0 if it need not be.
        mask_stride: input pixels of one pixel of the soft masks.
        soft_masks: whether the graph leaves the last resize to its user.
        precision: "float32" or "float16".
        topk: candidates whose masks are made.
        pre_nms_topk: of these, how many enter NMS.
        max_detections: D.
        score_thresh: least class probability of a candidate.
        mask_thresh: least probability of a mask's pixel.
        keep_thresh: least score of a detection.
    """

    class_names: list[str]
    class_ids: list[Any]
    input_format: str
    pixel_mean: list[float]
    pixel_std: list[float]
    min_size: int
    max_size: int
    size_divisor: int
    square_size: int
    mask_stride: int
    soft_masks: bool
    precision: str
    topk: int
    pre_nms_topk: int
    max_detections: int
    score_thresh: float
    mask_thresh: float
    keep_thresh: float

    def to_metadata(self) -> dict[str, str]:
        """Every field as json, under its name."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> "ModelInfo":
        """Read what `to_metadata` gave; other keys are left alone.

        Args:
            metadata: of a model.
            source: its name, for the error.

        Raises:
            ValueError: a field is missing, or has a value that cannot be.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in metadata]
        if missing:
            raise ValueError(
                f"{source}: no model that tools/export_model.py has written: its metadata lacks "
                f"{', '.join(missing)}"
            )
        try:
            values = {name: json.loads(metadata[name]) for name in names}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: its metadata are damaged: {error}") from error
        wrong = [name for name in names if not _is_possible(name, values[name])]
        if not wrong and len(values["class_names"]) != len(values["class_ids"]):
            wrong = ["class_ids"]
        if wrong:
            raise ValueError(
                f"{source}: the metadata's {wrong[0]} is {metadata[wrong[0]]:.80}, which cannot be"
            )
        return cls(**values)


def _is_possible(name: str, value: Any) -> bool:
    """Whether a field of `ModelInfo` may have a value."""
    if name in _LIMITS:
        least, most = _LIMITS[name]
        return type(value) is int and least <= value <= most
    if name in _THRESHOLDS:
        return type(value) in (int, float) and -1 <= value <= 1
    if name in ("pixel_mean", "pixel_std"):
        numbers = isinstance(value, list) and len(value) == 3
        return numbers and all(type(x) in (int, float) and abs(x) < np.inf for x in value)
    if name in ("class_names", "class_ids"):
        kinds = (str,) if name == "class_names" else (int, str)
        return isinstance(value, list) and bool(value) and all(type(x) in kinds for x in value)
    if name == "input_format":
        return value in ("BGR", "RGB")
    return type(value) is (bool if name == "soft_masks" else str)


class Detector:
    """An exported model, ready for images of any size."""

    def __init__(self, run: Callable[[Arrays], Arrays], info: ModelInfo):
        """Wrap a graph.

        Args:
            run: from the inputs by name to the outputs by name.
            info: the model's metadata.
        """
        self.run, self.info = run, info

    @classmethod
    def load(
        cls, path: str | Path, *, providers: Sequence[str] | None = None, threads: int = 0
    ) -> "Detector":
        """Read an ONNX file.

        Args:
            path: the file.
            providers: ONNX Runtime's execution providers, best first; None for the CPU.
            threads: of the CPU; 0 lets ONNX Runtime choose.

        Raises:
            ValueError: the file is missing, no ONNX model, or not one of this project. What it
                computes, and in how much memory, is up to the file.
        """
        import onnxruntime

        if not Path(path).is_file():
            raise ValueError(f"The model {path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # not how the graph was optimised
        providers = list(providers or ["CPUExecutionProvider"])
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # it has many kinds, of no common base
            raise ValueError(f"{path}: ONNX Runtime cannot load it: {_line(error)}") from error
        info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
        names = [output.name for output in session.get_outputs()]
        expected = _OUTPUTS[:-1] if info.soft_masks else _OUTPUTS
        given = {node.name for node in session.get_inputs()}
        if given != set(_INPUTS[:2] if info.soft_masks else _INPUTS) or not set(expected) <= set(
            names
        ):
            raise ValueError(f"{path}: its inputs and outputs are not those of its metadata")

        def run(inputs: Arrays) -> Arrays:
            try:
                return dict(zip(names, session.run(names, inputs), strict=True))
            except Exception as error:
                raise ValueError(f"{path}: ONNX Runtime cannot run it: {_line(error)}") from error

        return cls(run, info)

    def __call__(
        self,
        images: Sequence[str | Path | NDArray[np.uint8]],
        *,
        channel_order: str = "RGB",
        score_thresh: float = 0.0,
    ) -> list[Arrays]:
        """Find the instances of images, in one batch.

        Args:
            images: names of files, or (H, W, 3) uint8.
            channel_order: of the arrays, "RGB" or "BGR".
            score_thresh: least score of what is returned; the model has its own too.

        Returns:
            For each image, best first: scores (N,) float32, classes (N,) int64, boxes (N, 4)
            float32 (XYXY in pixels, right and lower edge exclusive), masks (N, H, W) bool; and
            num_candidates, see `detect`.

        Raises:
            ValueError: a file cannot be read, an array is no image, or the graph gives what a model
                of this project cannot give.
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
        """Find the instances of images that have the model's size and channel order already.

        Args:
            images: (H, W, 3) uint8 each.
            output_sizes: height and width of the results of each image.
            score_thresh: see `__call__`.

        Returns:
            See `__call__`; num_candidates, () int64, is how many cells' classes exceeded the score
            threshold. If these are more than `info.topk`, the least likely had no chance.
        """
        if not images:
            return []
        outputs = self.run(self.graph_inputs(images, output_sizes))
        self._require_possible(outputs, len(images), output_sizes)
        return [
            self._finish(outputs, index, image.shape[:2], output_sizes[index], score_thresh)
            for index, image in enumerate(images)
        ]

    def graph_inputs(
        self, images: Sequence[NDArray[np.uint8]], output_sizes: Sequence[tuple[int, int]]
    ) -> Arrays:
        """The inputs of the graph, by name, for a batch; see `detect`."""
        image_sizes = [(image.shape[0], image.shape[1]) for image in images]
        height, width = self.padded_size(image_sizes)
        batch = np.zeros((len(images), 3, height, width), np.uint8)
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        inputs: Arrays = {"images": batch, "image_sizes": np.array(image_sizes, np.int64)}
        if not self.info.soft_masks:
            for axis, name in enumerate(("rows", "columns")):
                sides = [(a[axis], b[axis]) for a, b in zip(image_sizes, output_sizes, strict=True)]
                inputs[name] = stack_positions([sample_positions(*pair) for pair in sides])
        return inputs

    def padded_size(self, image_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width that hold all images, as the model needs them."""
        sides = [max(size[axis] for size in image_sizes) for axis in range(2)]
        if self.info.square_size:
            sides = [self.info.square_size] * 2
        divisor = self.info.size_divisor
        height, width = (-(-side // divisor) * divisor for side in sides)
        return height, width

    def _require_possible(
        self, outputs: Arrays, count: int, output_sizes: Sequence[tuple[int, int]]
    ) -> None:
        """Refuse outputs that would be indices out of range, or arrays that don't fit together."""
        shape = outputs["scores"].shape
        shapes = {"classes": shape, "num_detections": (count,), "num_candidates": (count,)}
        if not self.info.soft_masks:
            shapes["boxes"] = (*shape, 4)
        fit = len(shape) == 2 and shape[0] == count and outputs["masks"].shape[:2] == shape
        fit = fit and all(outputs[name].shape == wanted for name, wanted in shapes.items())
        if fit and not self.info.soft_masks:
            most = np.max(output_sizes, axis=0)
            fit = outputs["masks"].ndim == 4 and bool((outputs["masks"].shape[2:] >= most).all())
        found, classes = outputs["num_detections"], outputs["classes"]
        if (
            not fit
            or (found < 0).any()
            or (found > shape[1]).any()
            or (
                classes.size
                and not 0 <= classes.min() <= classes.max() < len(self.info.class_names)
            )
        ):
            raise ValueError("the model's outputs do not fit its metadata: it is damaged")

    def _finish(
        self,
        outputs: Arrays,
        index: int,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
        score_thresh: float,
    ) -> Arrays:
        """The results of one image of a batch."""
        scores = outputs["scores"][index]
        count = int(outputs["num_detections"][index])
        count = min(count, int((scores >= score_thresh).sum()))  # scores do not rise
        masks = outputs["masks"][index, :count]
        if self.info.soft_masks:
            masks = paste_masks(
                masks, self.info.mask_stride, image_size, output_size, self.info.mask_thresh
            )
            boxes = mask_boxes(masks)
        else:
            masks = masks[:, : output_size[0], : output_size[1]]
            boxes = outputs["boxes"][index, :count]
        return {
            "scores": scores[:count],
            "classes": outputs["classes"][index, :count],
            "boxes": boxes,
            "masks": masks,
            "num_candidates": outputs["num_candidates"][index],
        }


def _line(error: Exception) -> str:
    """What ONNX Runtime says, on one line."""
    return " ".join(str(error).split())[:300]


def _require_image(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return image
