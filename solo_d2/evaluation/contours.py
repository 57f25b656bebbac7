"""How well instance contours are found: precision, recall and F of their pixels.

A pixel of a predicted contour is right if a pixel of its instance's true contour is near, and a
pixel of a true contour is found if one of the predicted contour is near. Near is at most 0.8 % of
the image's diagonal, rounded up to whole pixels, as in the contour accuracy F of DAVIS (Perazzi et
al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016).
Precision and recall count the pixels of all images together. F is their harmonic mean at the score
threshold that is best for the whole data set, as contour detection is scored on BSDS (ODS; Arbelaez
et al., Contour Detection and Hierarchical Image Segmentation, PAMI 2011).

Which instance a prediction is: by falling score, each takes the free object of its class in the
image with which its own F is best, and none where that is 0. All pixels of a prediction without an
object are wrong, less those in a crowd region of its class; no pixel of an object without a
prediction is found. Crowd regions are no objects.

Masks are decoded one at a time and kept as run lengths.

M predictions and N objects of an image, H W rows and columns, K classes.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tabulate import tabulate

from solo_d2.data.segmentations import clean_segmentation, to_rle
from solo_d2.data.unique_names import unique_thing_names
from solo_d2.ops.contours import contour_masks
from solo_d2.utils.errors import DatasetError

logger = logging.getLogger(__name__)

# Distance at which contours agree, relative to the image's diagonal; DAVIS.
TOLERANCE = 0.008
METRICS = ("F", "precision", "recall", "threshold")
# A compressed run-length encoding of pycocotools.
Rle = dict[str, Any]


@dataclass(frozen=True)
class Contours:
    """Contours of an image.

    Attributes:
        lines: their pixels, N of them.
        near: the pixels at most the tolerance away from each.
        classes: (N,) int64 in [0, K).
    """

    lines: list[Rle]
    near: list[Rle]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class ContourCounts:
    """Numbers of contour pixels in some images.

    Attributes:
        rows: (M, 5) float64, of each prediction class, score, its pixels that count, those of them
            that are right, and the pixels of its object that are found.
        true: (K,) int64, pixels of all objects of a class.
    """

    rows: NDArray[np.float64]
    true: NDArray[np.int64]

    @staticmethod
    def sum(parts: "Iterable[ContourCounts]", num_classes: int) -> "ContourCounts":
        """Put the counts of images together."""
        parts = list(parts)
        return ContourCounts(
            np.concatenate([np.zeros((0, 5)), *(part.rows for part in parts)]),
            np.sum([np.zeros(num_classes, np.int64), *(part.true for part in parts)], axis=0),
        )


def encode_contours(
    contours: Iterable[NDArray[np.bool_]], classes: NDArray[np.int64], tolerance: int
) -> Contours:
    """Encode contours, each (H, W) bool, and the pixels at most `tolerance` away from each."""
    lines, near = [], []
    for contour in contours:
        lines.append(_encode(contour))
        near.append(_encode(_grow(contour, tolerance)))
    return Contours(lines, near, classes)


def count_pixels(
    predicted: Contours,
    scores: NDArray[np.float64],
    truth: Contours,
    crowds: dict[int, Rle],
    *,
    num_classes: int,
) -> ContourCounts:
    """Match the predictions of an image to its objects, and count.

    Args:
        predicted: M contours.
        scores: (M,) of any order; of equal ones the earlier chooses first.
        truth: N contours of objects.
        crowds: the crowd region of each class that has one.
        num_classes: K.
    """
    rows = np.zeros((len(scores), 5))
    rows[:, 0], rows[:, 1] = predicted.classes, scores
    rows[:, 2] = _areas(predicted.lines)
    true_sizes = _areas(truth.lines)
    true = np.bincount(truth.classes, true_sizes, num_classes).astype(np.int64)
    free = np.ones(len(true_sizes), dtype=bool)
    for row in np.argsort(-scores, kind="stable"):
        kind, size = predicted.classes[row], max(rows[row, 2], 1)
        its = np.flatnonzero(free & (truth.classes == kind))
        line, near = predicted.lines[row], predicted.near[row]
        right = _shared([line], [truth.near[i] for i in its])[0]
        found = _shared([truth.lines[i] for i in its], [near])[:, 0]
        quality = _f_measure(right / size, found / np.maximum(true_sizes[its], 1))
        if len(its) and quality.max() > 0:
            best = quality.argmax()
            free[its[best]] = False
            rows[row, 3:] = right[best], found[best]
        elif kind in crowds:
            rows[row, 2] -= _shared([line], [crowds[kind]])[0, 0]
    return ContourCounts(rows, true)


def _encode(mask: NDArray[Any]) -> Rle:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def _grow(contour: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels at most this far from those of a contour."""
    result = np.zeros_like(contour)
    rows, columns = (np.flatnonzero(contour.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        window = tuple(
            slice(max(0, lines[0] - distance), lines[-1] + distance + 1)
            for lines in (rows, columns)
        )
        away = (~contour[window]).astype(np.uint8)
        distances = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        result[window] = distances < distance + 1e-3  # whole numbers are not quite exact
    return result


def _areas(rles: list[Rle]) -> NDArray[np.float64]:
    return np.array([coco_mask.area(rle) for rle in rles], np.float64)


def _shared(ones: list[Rle], others: list[Rle]) -> NDArray[np.float64]:
    """(M, N): pixels that each of M masks shares with each of N."""
    if not ones or not others:
        return np.zeros((len(ones), len(others)))
    # Of crowd regions the overlap is relative to the first mask.
    shares = coco_mask.iou(ones, others, [1] * len(others))
    return np.rint(np.nan_to_num(shares) * _areas(ones)[:, None])


def _f_measure(precision: NDArray[Any], recall: NDArray[Any]) -> NDArray[np.float64]:
    """The harmonic mean; 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def contour_metrics(counts: ContourCounts, class_index: int | None = None) -> dict[str, float]:
    """Compute F at the best score threshold, with precision and recall there, in percent.

    Args:
        counts: of all images.
        class_index: of one class; None: of all together.

    Returns:
        "F", "precision", "recall", "threshold" (the least score that counts, in [0, 1]). Without
        objects all are NaN; without predictions F and recall are 0, the others NaN.
    """
    rows, true = counts.rows, counts.true
    if class_index is not None:
        rows, true = rows[rows[:, 0] == class_index], true[class_index]
    num_true = int(true.sum())
    if num_true == 0:
        return dict.fromkeys(METRICS, math.nan)
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    scores = rows[:, 1]
    # What has the same score counts together.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    predicted, right, found = np.cumsum(rows[:, 2:], axis=0)[last].T
    if not len(last) or predicted[-1] == 0:
        return {"F": 0.0, "precision": math.nan, "recall": 0.0, "threshold": math.nan}
    precision, recall = right / np.maximum(predicted, 1), found / num_true
    quality = _f_measure(precision, recall)
    best = int(quality.argmax())
    values = 100 * quality[best], 100 * precision[best], 100 * recall[best], scores[last[best]]
    return dict(zip(METRICS, map(float, values), strict=True))


class ContourEvaluator(DatasetEvaluator):
    """F, precision and recall of instance contours, and F of each class."""

    def __init__(self, dataset_name: str):
        """Load the annotations.

        Args:
            dataset_name: registered, with thing_classes in its metadata and annotations with a
                segmentation in its dicts.
        """
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        self._class_names = unique_thing_names(MetadataCatalog.get(dataset_name))
        self._dataset_name = dataset_name
        self._counts: list[ContourCounts] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._counts = []

    def check_truth(self) -> None:
        """Check the annotations that `process` will decode.

        Raises:
            DatasetError: one cannot be used.
        """
        for record in self._records.values():
            for annotation in record["annotations"]:
                _clean(annotation, record)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: with image_id.
            outputs: with "instances", whose pred_masks are contours at the image's size; empty
                for no predictions.

        Raises:
            DatasetError: an image is not in the data set, has another size there, or an annotation
                cannot be used.
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records.get(image["image_id"])
            if record is None:
                key = image["image_id"]
                raise DatasetError(f"Data set '{self._dataset_name}' has no image {key!r}")
            size = record["height"], record["width"]
            masks: Any = ()
            classes, scores = np.zeros(0, np.int64), np.zeros(0)
            if "instances" in output:
                found = output["instances"]
                self._require_size(record, found.image_size)
                masks = (mask.bool().cpu().numpy() for mask in found.pred_masks)
                classes = found.pred_classes.cpu().numpy()
                scores = found.scores.double().cpu().numpy()
            tolerance = math.ceil(TOLERANCE * math.hypot(*size))
            predicted = encode_contours(masks, classes, tolerance)
            objects, crowds = self._truth(record, tolerance)
            num_classes = len(self._class_names)
            self._counts.append(
                count_pixels(predicted, scores, objects, crowds, num_classes=num_classes)
            )

    def _require_size(self, record: dict[str, Any], size: tuple[int, int]) -> None:
        if (record["height"], record["width"]) != tuple(size):
            raise DatasetError(
                f"{record['file_name']} has {record['height']} x {record['width']} pixels (height "
                f"x width) in data set '{self._dataset_name}', the predictions {size[0]} x "
                f"{size[1]}"
            )

    def _truth(self, record: dict[str, Any], tolerance: int) -> tuple[Contours, dict[int, Rle]]:
        """Return the contours of an image's objects, and the crowd region of each class."""
        objects: list[Rle] = []
        classes: list[int] = []
        crowds: dict[int, Rle] = {}
        for annotation in record["annotations"]:
            segmentation, kind = _clean(annotation, record), annotation["category_id"]
            if segmentation is None:
                continue
            rle = to_rle(segmentation, record["height"], record["width"])
            if annotation.get("iscrowd", 0):
                crowds[kind] = coco_mask.merge([crowds[kind], rle]) if kind in crowds else rle
            else:
                objects.append(rle)
                classes.append(kind)
        lines = (
            contour_masks(torch.from_numpy(coco_mask.decode(rle)[None]).bool())[0].numpy()
            for rle in objects
        )
        return encode_contours(lines, np.array(classes, np.int64), tolerance), crowds

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Put the counts of all images together; all processes must call it.

        Returns:
            {"contours": metrics} on the main process: those of `contour_metrics` and "F-CLASS" of
            each class, with a threshold of its own; NaN for classes that are not annotated.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        images = [counts for part in gathered for counts in part]
        counts = ContourCounts.sum(images, len(self._class_names))
        metrics = contour_metrics(counts)
        table = tabulate([list(metrics.values())], METRICS, tablefmt="pipe", floatfmt=".2f")
        logger.info("Instance contours:\n%s", table)
        for index, name in enumerate(self._class_names):
            metrics[f"F-{name}"] = contour_metrics(counts, index)["F"]
        return OrderedDict(contours=metrics)


def _clean(annotation: dict[str, Any], record: dict[str, Any]) -> Any:
    try:
        return clean_segmentation(annotation.get("segmentation"), record["height"], record["width"])
    except ValueError as error:
        raise DatasetError(f"{record['file_name']}: an annotation's {error}") from error
