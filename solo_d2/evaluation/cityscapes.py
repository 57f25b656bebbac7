"""Average precision of instances as in Cityscapes.

Follows evalInstanceLevelSemanticLabeling.py of cityscapesScripts 2.3, which fails with NumPy 2.4.
For an object of at least 100 pixels, the highest-scored prediction of its class whose IoU exceeds
the threshold is a true positive, the others are false positives. A prediction without such an
object or group is a false positive, unless too many of its pixels are in groups, small objects or
unlabelled.

M predictions and N objects or groups of a class in an image.
"""

import glob
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from solo_d2.data.cityscapes_format import FIRST_OBJECT, label_ids, read_instance_ids, truth_file
from solo_d2.ops.host_copies import to_host
from solo_d2.ops.mask_crops import whole_masks
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.images import ImageError, read_size

logger = logging.getLogger(__name__)

IOU_THRESHS = np.arange(0.5, 1.0, 0.05)
# Minimum size of objects in pixels; smaller ones are ignored.
_LEAST_PIXELS = 100
# Evaluated labels; pixels of all others are unlabelled.
_EVALUATED = [category["id"] for category in CITYSCAPES_CATEGORIES]


# For a class in an image: the number of evaluated objects, and for each of `IOU_THRESHS` the scores
# of the counted predictions and whether each is a true positive.
ClassInImage = tuple[int, list[tuple[NDArray[np.float64], NDArray[np.bool_]]]]


class CityscapesEvaluator(DatasetEvaluator):
    """Evaluate AP and AP50 of instance masks."""

    def __init__(self, dataset_name: str):
        """Read thing_classes and gt_dir from the metadata of a data set."""
        metadata = MetadataCatalog.get(dataset_name)
        self._gt_dir, self._labels = metadata.gt_dir, label_ids(metadata.thing_classes)
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._images: list[list[ClassInImage]] = []  # by class

    def check_truth(self) -> None:
        """Raise DatasetError if there are no PNGs of ground truth, or one is damaged."""
        pattern = os.path.join(self._gt_dir, "*", "*_gtFine_instanceIds.png")
        files = glob.glob(pattern)
        if not files:
            raise DatasetError(f"There is no ground truth: no file matches {pattern}")
        try:
            for file in files:
                read_size(file)
        except ImageError as error:
            raise DatasetError(str(error)) from error

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare the predictions of some images; an output may be empty.

        Raises:
            DatasetError: the ground truth cannot be read.
        """
        for image, output in zip(inputs, outputs, strict=True):
            ids = read_instance_ids(truth_file(self._gt_dir, image["file_name"]))
            self._images.append(self._compare(ids, output.get("instances")))

    def _compare(self, ids: NDArray[np.int32], found: Instances | None) -> list[ClassInImage]:
        keys, index, sizes = np.unique(ids, return_inverse=True, return_counts=True)
        index = index.reshape(ids.shape)
        shared, classes, scores = np.zeros((0, len(keys)), int), np.zeros(0, int), np.zeros(0)
        if found is not None and len(found):
            fields = (whole_masks(found.pred_masks), found.pred_classes, found.scores)
            masks, classes, scores = (x.numpy() for x in to_host(fields))
            shared = np.stack([np.bincount(index[mask], minlength=len(keys)) for mask in masks])
        unlabelled = (keys < FIRST_OBJECT) & ~np.isin(keys, _EVALUATED)
        result = []
        for number, label in enumerate(self._labels):
            mine = (classes == number) & shared.any(axis=1)
            its = (keys == label) | (keys // FIRST_OBJECT == label)
            result.append(
                match_instances(
                    scores[mine],
                    shared[mine][:, its],
                    pred_sizes=shared[mine].sum(axis=1),
                    sizes=sizes[its],
                    is_object=keys[its] >= FIRST_OBJECT,
                    unlabelled=shared[mine][:, unlabelled].sum(axis=1),
                )
            )
        return result

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Accumulate all images; all processes must call it.

        Returns:
            {"segm": {"AP", "AP50"}} in percent in the main process; NaN without objects.
        """
        gathered = comm.gather(self._images)
        if not comm.is_main_process():
            return None
        images = [image for part in gathered for image in part]
        # (classes that have objects, thresholds)
        ap = np.array(
            [
                [average_precision(of_class, index) for index in range(len(IOU_THRESHS))]
                for of_class in zip(*images, strict=True)
                if any(num_objects for num_objects, _ in of_class)
            ]
        )
        metrics = {"AP": math.nan, "AP50": math.nan}
        if len(ap):
            metrics = {"AP": 100 * float(ap.mean()), "AP50": 100 * float(ap[:, 0].mean())}
        logger.info("Metrics of segm:\n%s", create_small_table(metrics))
        return OrderedDict(segm=metrics)


def match_instances(
    scores: NDArray[np.float64],
    shared: NDArray[np.int64],
    *,
    pred_sizes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    is_object: NDArray[np.bool_],
    unlabelled: NDArray[np.int64],
) -> ClassInImage:
    """Find the true positives of a class in an image for each of `IOU_THRESHS`.

    Args:
        scores: (M,).
        shared: (M, N) intersections of predictions with objects and groups, in pixels.
        pred_sizes: (M,) sizes of the predictions in pixels, at least 1.
        sizes: (N,) sizes of the objects and groups in pixels.
        is_object: (N,), False for groups.
        unlabelled: (M,) number of pixels of the predictions that are unlabelled.
    """
    large = sizes >= _LEAST_PIXELS
    counted = large & is_object
    iou = shared / (pred_sizes[:, None] + sizes - shared)
    ignored = (unlabelled + shared[:, ~is_object].sum(axis=1) + shared[:, ~large].sum(axis=1)) / (
        pred_sizes
    )
    outcomes = []
    for thresh in IOU_THRESHS:
        hits = iou > thresh
        right = np.zeros(len(scores), bool)
        for column in hits[:, counted].T:
            if column.any():
                right[np.where(column, scores, -np.inf).argmax()] = True
        wrong = ~hits.any(axis=1) & (ignored <= thresh)
        counts = hits[:, counted].any(axis=1) | wrong
        outcomes.append((scores[counts], right[counts]))
    return int(counted.sum()), outcomes


def average_precision(images: Sequence[ClassInImage], index: int) -> float:
    """Return the AP in [0, 1] of a class over all images, the area under its step curve.

    `index` selects the IoU threshold; at least one image must have an object.
    """
    scores, right = (
        np.concatenate([outcomes[index][part] for _, outcomes in images]) for part in (0, 1)
    )
    if not len(scores):
        return 0.0
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)  # count equal scores together
    lower = np.append(0, np.cumsum(right[order]))[first]
    true = right.sum() - lower
    precision = np.append(true / (len(scores) - first), 1.0)
    recall = np.append(true / sum(num_objects for num_objects, _ in images), 0.0)
    widths = np.convolve([recall[0], *recall, 0.0], [-0.5, 0.0, 0.5], "valid")
    return float(precision @ widths)
