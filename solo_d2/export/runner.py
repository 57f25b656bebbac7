"""Run an exported model with NumPy, OpenCV and ONNX Runtime: neither torch nor Detectron2.

    detector = Detector.load("model.onnx")
    for found in detector(["photo.jpg"]):
        print(found["scores"], [detector.info.class_names[k] for k in found["classes"]])

All the model's settings are in the file's metadata. Images become the same pixels as in Detectron2,
whose resizing is Pillow's (`solo_d2.export.pixels`); only the decoding of files is OpenCV's.

B images, D detections of the graph, N those of an image, H W rows and columns.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
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

Arrays = dict[str, NDArray[Any]]


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
    class_ids: list[int]
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
            ValueError: a field is missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in metadata]
        if missing:
            raise ValueError(
                f"{source}: no model that tools/export_model.py has written: its metadata lacks "
                f"{', '.join(missing)}"
            )
        return cls(**{name: json.loads(metadata[name]) for name in names})


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
            ValueError: the file is missing, no ONNX model, or not one of this project.
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
            raise ValueError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
        names = [output.name for output in session.get_outputs()]

        def run(inputs: Arrays) -> Arrays:
            return dict(zip(names, session.run(names, inputs), strict=True))

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
            ValueError: a file cannot be read, or an array is no image.
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


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file upright, (H, W, 3) uint8 BGR.

    Raises:
        ValueError: the file is missing, or no image that OpenCV knows.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise ValueError(f"{path}: no image that OpenCV can read")
    return image.astype(np.uint8, copy=False)


def _require_image(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return image
