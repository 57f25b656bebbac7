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

M predictions and N objects of an image, H W rows and columns, K classes.
"""

import itertools
import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tabulate import tabulate

from solo_d2.data.segmentations import clean_segmentation
from solo_d2.data.unique_names import unique_thing_names
from solo_d2.ops.contours import contour_masks
from solo_d2.utils.errors import DatasetError

logger = logging.getLogger(__name__)

# Of the image's diagonal; DAVIS.
TOLERANCE = 0.008
FIGURES = ("F", "precision", "recall", "threshold")


@dataclass(frozen=True)
class ContourCounts:
    """Pixels of the contours of some images.

    Attributes:
        scores: (M,) float64, of the predictions.
        classes: (M,) int64 in [0, K), of the predictions.
        predicted: (M,) int64, pixels of each prediction that count.
        right: (M,) int64, those of them that are right.
        found: (M,) int64, pixels of the prediction's object that are found.
        true: (K,) int64, pixels of all objects of a class.
    """

    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    predicted: NDArray[np.int64]
    right: NDArray[np.int64]
    found: NDArray[np.int64]
    true: NDArray[np.int64]

    def select(self, class_index: int) -> "ContourCounts":
        """Those of one class."""
        chosen = self.classes == class_index
        return ContourCounts(
            self.scores[chosen],
            self.classes[chosen],
            self.predicted[chosen],
            self.right[chosen],
            self.found[chosen],
            self.true[class_index : class_index + 1],
        )


def concatenate_counts(parts: Sequence[ContourCounts], num_classes: int) -> ContourCounts:
    """The counts of all images of all parts."""
    none = np.zeros(0, np.int64)
    return ContourCounts(
        np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        np.concatenate([none, *(part.classes for part in parts)]),
        np.concatenate([none, *(part.predicted for part in parts)]),
        np.concatenate([none, *(part.right for part in parts)]),
        np.concatenate([none, *(part.found for part in parts)]),
        sum((part.true for part in parts), np.zeros(num_classes, np.int64)),
    )


@dataclass(frozen=True)
class TrueContours:
    """The ground truth of one image.

    Attributes:
        contours: (N, H, W) bool.
        classes: (N,) int64 in [0, K).
        crowds: (C, H, W) bool, crowd regions; whole, not their contours.
        crowd_classes: (C,) int64 in [0, K).
    """

    contours: NDArray[np.bool_]
    classes: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    crowd_classes: NDArray[np.int64]


def count_pixels(
    contours: NDArray[np.bool_],
    classes: NDArray[np.int64],
    scores: NDArray[np.float64],
    truth: TrueContours,
    *,
    num_classes: int,
    tolerance: int,
) -> ContourCounts:
    """Match the predictions of an image to its objects, and count.

    Args:
        contours: (M, H, W) bool, predicted contours.
        classes: (M,) int64 in [0, K).
        scores: (M,) of any order; of equal ones the earlier chooses first.
        truth: of the image.
        num_classes: K.
        tolerance: largest distance in pixels between contours that agree.
    """
    predicted, right, found = (np.zeros(len(contours), np.int64) for _ in range(3))
    true = np.zeros(num_classes, np.int64)
    for index in np.union1d(classes, truth.classes):
        mine, its = np.flatnonzero(classes == index), np.flatnonzero(truth.classes == index)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        right_pairs = _shared_pixels(contours[mine], _grow(truth.contours[its], tolerance))
        found_pairs = _shared_pixels(truth.contours[its], _grow(contours[mine], tolerance)).T
        sizes, true_sizes = (x.sum(axis=(1, 2)) for x in (contours[mine], truth.contours[its]))
        crowd = truth.crowds[truth.crowd_classes == index].any(axis=0, keepdims=True)
        free = np.ones(len(its), dtype=bool)
        true[index] = true_sizes.sum()
        predicted[mine] = sizes
        for row, prediction in enumerate(mine):
            precision = right_pairs[row] / max(sizes[row], 1)
            quality = _f_measure(precision, found_pairs[row] / np.maximum(true_sizes, 1)) * free
            if len(its) and quality.max() > 0:
                best = quality.argmax()
                free[best] = False
                right[prediction] = right_pairs[row, best]
                found[prediction] = found_pairs[row, best]
            else:
                predicted[prediction] -= int((contours[prediction] & crowd[0]).sum())
    return ContourCounts(scores, classes, predicted, right, found, true)


def _grow(contours: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """(N, H, W) bool: the pixels at most this far from those of each contour."""
    result = np.zeros_like(contours)
    for contour, near in zip(contours, result, strict=True):
        rows, columns = (np.flatnonzero(contour.any(axis=axis)) for axis in (1, 0))
        if len(rows) == 0:
            continue
        window = tuple(
            slice(max(0, lines[0] - distance), lines[-1] + distance + 1)
            for lines in (rows, columns)
        )
        away = (~contour[window]).astype(np.uint8)
        distances = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near[window] = distances < distance + 1e-3  # whole numbers are not quite exact
    return result


def _shared_pixels(ones: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(M, N) int64: pixels that each of M masks shares with each of N."""
    if not len(ones) or not len(others):
        return np.zeros((len(ones), len(others)), np.int64)
    left, right = (
        coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
        for masks in (ones, others)
    )
    # Of crowd regions the overlap is relative to the first mask.
    shares = coco_mask.iou(left, right, [1] * len(right))
    return np.rint(np.nan_to_num(shares) * coco_mask.area(left)[:, None]).astype(np.int64)


def _f_measure(precision: NDArray[Any], recall: NDArray[Any]) -> NDArray[np.float64]:
    """The harmonic mean; 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def contour_figures(counts: ContourCounts) -> dict[str, float]:
    """F at the best score threshold, with precision and recall there, in percent.

    Args:
        counts: of all images.

    Returns:
        "F", "precision", "recall", "threshold" (the least score that counts, in [0, 1]). Without
        objects all are NaN; without predictions F and recall are 0, the others NaN.
    """
    num_true = int(counts.true.sum())
    if num_true == 0:
        return dict.fromkeys(FIGURES, math.nan)
    order = np.argsort(-counts.scores, kind="stable")
    scores = counts.scores[order]
    # What has the same score counts together.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    predicted, right, found = (
        np.cumsum(x[order])[last] for x in (counts.predicted, counts.right, counts.found)
    )
    precision, recall = right / np.maximum(predicted, 1), found / num_true
    if not len(last) or predicted[-1] == 0:
        return {"F": 0.0, "precision": math.nan, "recall": 0.0, "threshold": math.nan}
    quality = _f_measure(precision, recall)
    best = int(quality.argmax())
    return {
        "F": 100 * float(quality[best]),
        "precision": 100 * float(precision[best]),
        "recall": 100 * float(recall[best]),
        "threshold": float(scores[last[best]]),
    }


class ContourEvaluator(DatasetEvaluator):
    """F, precision and recall of instance contours, and F of each class."""

    def __init__(self, dataset_name: str, *, tolerance: float = TOLERANCE):
        """Load the annotations.

        Args:
            dataset_name: registered, with thing_classes in its metadata and annotations with a
                segmentation in its dicts.
            tolerance: distance at which contours agree, relative to the image's diagonal.
        """
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        self._class_names = unique_thing_names(MetadataCatalog.get(dataset_name))
        self._dataset_name = dataset_name
        self._tolerance = tolerance
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
            found = output.get("instances", self._nothing(image["image_id"]))
            truth = self._truth(image["image_id"], found.image_size)
            self._counts.append(
                count_pixels(
                    found.pred_masks.bool().cpu().numpy(),
                    found.pred_classes.cpu().numpy(),
                    found.scores.double().cpu().numpy(),
                    truth,
                    num_classes=len(self._class_names),
                    tolerance=math.ceil(self._tolerance * math.hypot(*found.image_size)),
                )
            )

    def _nothing(self, image_id: Any) -> Instances:
        record = self._records.get(image_id, {"height": 0, "width": 0})
        size = record["height"], record["width"]
        none = torch.zeros(0)
        masks = torch.zeros(0, *size, dtype=torch.bool)
        return Instances(size, pred_masks=masks, pred_classes=none.long(), scores=none)

    def _truth(self, image_id: Any, size: tuple[int, int]) -> TrueContours:
        record = self._records.get(image_id)
        if record is None:
            raise DatasetError(f"Data set '{self._dataset_name}' has no image {image_id!r}")
        if (record["height"], record["width"]) != tuple(size):
            raise DatasetError(
                f"{record['file_name']} has {record['height']} x {record['width']} pixels (height "
                f"x width) in data set '{self._dataset_name}', the predictions {size[0]} x "
                f"{size[1]}"
            )
        masks: dict[bool, list[NDArray[np.bool_]]] = {False: [], True: []}
        classes: dict[bool, list[int]] = {False: [], True: []}
        for annotation in record["annotations"]:
            mask = _annotated_mask(annotation, record)
            if mask is not None:
                crowd = bool(annotation.get("iscrowd", 0))
                masks[crowd].append(mask)
                classes[crowd].append(annotation["category_id"])
        objects, crowds = (
            np.stack(masks[crowd]) if masks[crowd] else np.zeros((0, *size), dtype=bool)
            for crowd in (False, True)
        )
        return TrueContours(
            contour_masks(torch.from_numpy(objects)).numpy(),
            np.array(classes[False], dtype=np.int64),
            crowds,
            np.array(classes[True], dtype=np.int64),
        )

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Put the counts of all images together.

        Returns:
            {"contours": figures} on the main process: those of `contour_figures` and "F-CLASS" of
            each class, with a threshold of its own; NaN for classes that are not annotated.
        """
        comm.synchronize()
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        counts = concatenate_counts([*itertools.chain(*gathered)], len(self._class_names))
        figures = contour_figures(counts)
        table = tabulate([list(figures.values())], FIGURES, tablefmt="pipe", floatfmt=".2f")
        logger.info("Instance contours:\n%s", table)
        for index, name in enumerate(self._class_names):
            figures[f"F-{name}"] = contour_figures(counts.select(index))["F"]
        return OrderedDict(contours=figures)


def _annotated_mask(annotation: dict[str, Any], record: dict[str, Any]) -> NDArray[np.bool_] | None:
    """(H, W) bool; None if the annotation covers nothing."""
    height, width = record["height"], record["width"]
    segmentation = _clean(annotation, record)
    if segmentation is None:
        return None
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return coco_mask.decode(segmentation).astype(bool)


def _clean(annotation: dict[str, Any], record: dict[str, Any]) -> Any:
    try:
        return clean_segmentation(annotation.get("segmentation"), record["height"], record["width"])
    except ValueError as error:
        raise DatasetError(f"{record['file_name']}: an annotation's {error}") from error
