"""Evaluate instance contours: precision, recall and F of their pixels.

A pixel of a predicted contour is a true positive if it is close to the contour of the matched
object; a pixel of a true contour is found if it is close to the matched prediction. The tolerance
is 0.8 % of the image diagonal, rounded up to whole pixels, as in the contour accuracy F of DAVIS
(Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR
2016). Precision and recall are computed over the pixels of all images. F is their harmonic mean at
the score threshold that is best for the whole data set, as on BSDS (ODS; Arbelaez et al., Contour
Detection and Hierarchical Image Segmentation, PAMI 2011).

Predictions are matched by decreasing score. Each takes the unmatched object of its class in the
image with the best F, if that is above 0. All pixels of an unmatched prediction are false
positives, except in a crowd region of its class. Crowd regions are not objects.

Masks are decoded one at a time and kept as run lengths.

M predictions and N objects of an image, H W rows and columns, K classes.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
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

from solo_d2.data.label_pngs import require_size
from solo_d2.data.segmentations import clean_segmentation, to_rle
from solo_d2.data.unique_names import unique_class_names
from solo_d2.ops.contours import contour_masks
from solo_d2.ops.host_copies import to_host
from solo_d2.utils.errors import DatasetError

logger = logging.getLogger(__name__)

# Tolerance relative to the image diagonal; DAVIS.
TOLERANCE = 0.008
METRICS = ("F", "precision", "recall", "threshold")
# A compressed run-length encoding of pycocotools.
Rle = dict[str, Any]


def encode_contours(contours: Iterable[NDArray[np.bool_]], tolerance: int) -> list[tuple[Rle, Rle]]:
    """Encode contours, each (H, W) bool, and the pixels within `tolerance` of each."""
    return [(_encode(contour), _encode(_grow(contour, tolerance))) for contour in contours]


def _encode(mask: NDArray[Any]) -> Rle:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def _grow(contour: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return (H, W) bool: the pixels within a distance of a contour."""
    result = np.zeros_like(contour)
    x, y, width, height = cv2.boundingRect(contour.view(np.uint8))
    if width:
        window = np.s_[
            max(0, y - distance) : y + height + distance,
            max(0, x - distance) : x + width + distance,
        ]
        away = (~contour[window]).view(np.uint8)
        distances = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        result[window] = distances < distance + 1e-3  # OpenCV rounds
    return result


def _shared(one: Rle, other: Rle) -> int:
    return int(coco_mask.area(coco_mask.merge([one, other], intersect=True)))


def count_pixels(
    predicted: Sequence[tuple[Rle, Rle]],
    classes: NDArray[np.int64],
    scores: NDArray[np.float64],
    truth: Sequence[tuple[Rle, Rle]],
    true_classes: NDArray[np.int64],
    crowds: Mapping[int, Rle],
    *,
    num_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Match the predictions of an image to its objects, and count contour pixels.

    Args:
        predicted: M contours, see `encode_contours`.
        classes: (M,) in [0, K).
        scores: (M,) in any order; ties are matched in order.
        truth: N contours of objects.
        true_classes: (N,) in [0, K).
        crowds: crowd regions by class.
        num_classes: K.

    Returns:
        (M, 5) class, score, counted pixels, true positive pixels, and found pixels of the matched
        object of each prediction; and (K,) contour pixels of all objects by class.
    """
    rows = np.zeros((len(scores), 5))
    rows[:, 0], rows[:, 1] = classes, scores
    sizes = np.array([coco_mask.area(line) for line, _ in truth], np.float64)
    free = np.ones(len(sizes), dtype=bool)
    for row in np.argsort(-scores, kind="stable"):
        line, near = predicted[row]
        kind, size = classes[row], int(coco_mask.area(line))
        its = np.flatnonzero(free & (true_classes == kind)).tolist()
        right = np.array([_shared(line, truth[i][1]) for i in its], np.float64)
        found = np.array([_shared(near, truth[i][0]) for i in its], np.float64)
        quality = _f_measure(right / max(size, 1), found / np.maximum(sizes[its], 1))
        rows[row, 2] = size
        if quality.any():
            best = quality.argmax()
            free[its[best]] = False
            rows[row, 3:] = right[best], found[best]
        elif kind in crowds:
            rows[row, 2] -= _shared(line, crowds[kind])
    return rows, np.bincount(true_classes, sizes, num_classes).astype(np.float64)


def _f_measure(precision: NDArray[Any], recall: NDArray[Any]) -> NDArray[np.float64]:
    """Return the harmonic mean; 0 if both are 0."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def contour_metrics(rows: NDArray[np.float64], num_true: float) -> dict[str, float]:
    """Compute F, precision and recall in percent at the best score threshold.

    Args:
        rows: (M, 5) of the predictions of all images, see `count_pixels`.
        num_true: pixels of all objects.

    Returns:
        "F", "precision", "recall" and "threshold", the minimum score in [0, 1]. All are NaN without
        objects; without predictions F and recall are 0, the others NaN.
    """
    if num_true == 0:
        return dict.fromkeys(METRICS, math.nan)
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    # Predictions of equal score are counted together.
    last = np.flatnonzero(np.diff(rows[:, 1], append=-np.inf))
    predicted, right, found = np.cumsum(rows[:, 2:], axis=0)[last].T
    if not predicted.any():
        return {"F": 0.0, "precision": math.nan, "recall": 0.0, "threshold": math.nan}
    precision, recall = right / np.maximum(predicted, 1), found / num_true
    quality = _f_measure(precision, recall)
    best = int(quality.argmax())
    values = 100 * quality[best], 100 * precision[best], 100 * recall[best], rows[last[best], 1]
    return dict(zip(METRICS, map(float, values), strict=True))


class ContourEvaluator(DatasetEvaluator):
    """F, precision and recall of instance contours, and F of each class."""

    def __init__(self, dataset_name: str):
        """Load the annotations.

        Args:
            dataset_name: registered data set with thing_classes and annotations with a
                segmentation.
        """
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        self._class_names = unique_class_names(MetadataCatalog.get(dataset_name))
        self._dataset_name = dataset_name
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._counts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def check_truth(self) -> None:
        """Raise DatasetError for an unusable annotation."""
        for record in self._records.values():
            for annotation in record["annotations"]:
                _clean(annotation, record)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of some images, whose pred_masks are contours; an output may be empty.

        Raises:
            DatasetError: an image is not in the data set or has another size, or an annotation is
                unusable.
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records.get(image["image_id"])
            if record is None:
                key = image["image_id"]
                raise DatasetError(f"Data set '{self._dataset_name}' has no image {key!r}")
            predicted, classes, scores = [], np.zeros(0, np.int64), np.zeros(0)
            tolerance = math.ceil(TOLERANCE * math.hypot(record["height"], record["width"]))
            if "instances" in output:
                found = output["instances"]
                require_size(record["file_name"], found.image_size, record)
                fields = (found.pred_masks.bool(), found.pred_classes, found.scores.double())
                masks, classes, scores = (x.numpy() for x in to_host(fields))
                predicted = encode_contours(masks, tolerance)
            truth = _truth(record, tolerance)
            num_classes = len(self._class_names)
            self._counts.append(
                count_pixels(predicted, classes, scores, *truth, num_classes=num_classes)
            )

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Accumulate the counts of all images; all processes must call it.

        Returns:
            {"contours": metrics} in the main process: those of `contour_metrics` and "F-CLASS" of
            each class at its own best threshold; NaN for classes without objects.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        images = [counts for part in gathered for counts in part]
        rows = np.concatenate([np.zeros((0, 5)), *(rows for rows, _ in images)])
        true = sum((true for _, true in images), np.zeros(len(self._class_names)))
        metrics = contour_metrics(rows, true.sum())
        table = tabulate([list(metrics.values())], METRICS, tablefmt="pipe", floatfmt=".2f")
        logger.info("Instance contours:\n%s", table)
        for index, name in enumerate(self._class_names):
            metrics[f"F-{name}"] = contour_metrics(rows[rows[:, 0] == index], true[index])["F"]
        return OrderedDict(contours=metrics)


def _truth(
    record: dict[str, Any], tolerance: int
) -> tuple[list[tuple[Rle, Rle]], NDArray[np.int64], dict[int, Rle]]:
    """Return contours and classes of the objects of an image, and crowd regions by class."""
    lines, classes = [], []
    crowds: dict[int, Rle] = {}
    for annotation in record["annotations"]:
        segmentation, kind = _clean(annotation, record), annotation["category_id"]
        if segmentation is None:
            continue
        rle = to_rle(segmentation, record["height"], record["width"])
        if annotation.get("iscrowd", 0):
            crowds[kind] = coco_mask.merge([crowds[kind], rle]) if kind in crowds else rle
        else:
            mask = torch.from_numpy(coco_mask.decode(rle)).bool()
            lines += encode_contours([contour_masks(mask[None])[0].numpy()], tolerance)
            classes.append(kind)
    return lines, np.array(classes, np.int64), crowds


def _clean(annotation: dict[str, Any], record: dict[str, Any]) -> Any:
    try:
        return clean_segmentation(annotation.get("segmentation"), record["height"], record["width"])
    except ValueError as error:
        raise DatasetError(f"{record['file_name']}: an annotation's {error}") from error
