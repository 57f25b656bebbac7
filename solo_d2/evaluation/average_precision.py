"""COCO's average precision, category by category.

Categories are independent in COCO's rules. So each is evaluated alone, with the images that have
something of it: evaluators spend most of their time on empty pairs of image and category, and
processes share the categories.

T IoU thresholds, R recall levels, K categories, A area ranges, M limits of predictions per image
and category: COCO's axes. Undefined values are -1, as in pycocotools.
"""

import contextlib
import functools
import importlib
import io
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from solo_d2.data.segmentations import clean_segmentation, is_number
from solo_d2.utils.errors import ConfigError, DatasetError, first_line, shown

# An annotation or prediction in COCO's format.
Annotation = dict[str, Any]
# Precision (T, R, 1, A, M) and recall (T, 1, A, M) of a category, float64.
Curves = tuple[NDArray[np.float64], NDArray[np.float64]]

# IoU types, and the key of a prediction that each compares.
_SHAPE = {"bbox": "bbox", "segm": "segmentation"}
IOU_TYPES = tuple(_SHAPE)
# Evaluators with pycocotools' interface, the fastest first: module and class.
BACKENDS = {
    "detectron2": ("detectron2.evaluation.fast_eval_api", "COCOeval_opt"),
    "faster-coco-eval": ("faster_coco_eval", "COCOeval_faster"),
    "pycocotools": ("pycocotools.cocoeval", "COCOeval"),
}


def load_backend(name: str) -> tuple[str, Callable[..., Any]]:
    """Import an evaluator.

    Args:
        name: a key of `BACKENDS`, or "auto" for the first that is installed.

    Returns:
        Its name, and a function of truth and predictions (COCO) and IoU type that makes it.

    Raises:
        ConfigError: there is none of that name, or it is not installed.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(
            f"TEST.AP_BACKEND is {name!r}, but must be 'auto' or one of {', '.join(BACKENDS)}"
        )
    for candidate in BACKENDS if name == "auto" else (name,):
        module, attribute = BACKENDS[candidate]
        try:
            evaluator = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            problem = error
            continue
        if candidate == "faster-coco-eval":
            # Its threads cost more processor time than they save where processes share the work.
            evaluator = functools.partial(evaluator, rle_iou_max_workers=1)
        return candidate, evaluator
    raise ConfigError(
        f"TEST.AP_BACKEND is {name!r}, but {module} cannot be imported ({problem}): install it, or "
        "set the key to 'auto'"
    ) from problem


class ImageIndex:
    """The images of a data set in the order of their ids.

    Evaluators in C++ take integer ids, but ids may be texts: an image's place stands for its id.

    Attributes:
        place: of each image id.
        sizes: height and width of the image at each place.
    """

    def __init__(self, images: Iterable[Mapping[str, Any]]):
        """Sort images, which have `id`, `height` and `width`."""
        ordered = sorted(images, key=lambda image: (isinstance(image["id"], str), image["id"]))
        self.place = {image["id"]: place for place, image in enumerate(ordered)}
        self.sizes = [(image["height"], image["width"]) for image in ordered]

    def __getitem__(self, image_id: Any) -> int:
        try:
            return self.place[image_id]
        except KeyError:
            raise DatasetError(
                f"There is a prediction for image {image_id!r}, which is not in the annotation "
                "file. Do the files of the data set belong together?"
            ) from None

    def record(self, place: int) -> dict[str, Any]:
        """Return the image at a place in COCO's format."""
        height, width = self.sizes[place]
        return {"id": place, "height": height, "width": width}


def truth_annotations(
    annotations: Iterable[Mapping[str, Any]], images: ImageIndex
) -> list[Annotation]:
    """Select what evaluators compare predictions with.

    Args:
        annotations: of COCO's format; `iscrowd` is 0 where it is missing. Those of images that the
            file does not list are left out.
        images: of the data set.

    Returns:
        Dicts of image_id (the place in `images`), category_id, iscrowd, area, bbox and
        segmentation, in the given order.
    """
    kept = []
    for annotation in annotations:
        if annotation["image_id"] in images.place:
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, dict):  # faster-coco-eval requires integers
                size = [int(side) for side in segmentation["size"]]
                segmentation = {**segmentation, "size": size}
            same = {key: annotation[key] for key in ("category_id", "area", "bbox")}
            place, crowd = images[annotation["image_id"]], int(annotation.get("iscrowd", 0))
            kept.append({**same, "image_id": place, "iscrowd": crowd, "segmentation": segmentation})
    return kept


def check_annotations(
    annotations: Iterable[Mapping[str, Any]], images: ImageIndex, categories: Container[Any]
) -> None:
    """Check the entries of an annotation file that `truth_annotations` and evaluators read.

    Args:
        annotations: of COCO's format. Those of images that the file does not list are ignored.
        images: of the data set.
        categories: ids of all categories.

    Raises:
        DatasetError: naming the annotation.
    """
    for annotation in annotations:
        if annotation.get("image_id") not in images.place:
            continue
        box = annotation.get("bbox")
        valid = {
            "category_id": annotation.get("category_id") in categories,
            "iscrowd": annotation.get("iscrowd", 0) in (0, 1),
            "area": is_number(annotation.get("area")),
            "bbox": isinstance(box, (list, tuple)) and len(box) == 4 and all(map(is_number, box)),
        }
        size = images.sizes[images[annotation["image_id"]]]
        try:
            for key in (key for key in valid if not valid[key]):
                raise ValueError(f"'{key}' cannot be {shown(annotation.get(key))}")
            clean_segmentation(annotation.get("segmentation"), *size)
            if isinstance(annotation["segmentation"], list):
                coco_mask.frPyObjects(annotation["segmentation"], *size)  # takes fewer polygons
        except Exception as error:
            reason = error if isinstance(error, ValueError) else first_line(error)
            raise DatasetError(f"annotation {shown(annotation.get('id'))}: {reason}") from error


def predicted_annotations(
    predictions: Sequence[Mapping[str, Any]], iou_type: str, images: ImageIndex
) -> list[Annotation]:
    """Select what evaluators compare with the truth, with the areas of the masks or boxes.

    Args:
        predictions: of COCO's result format.
        iou_type: of `IOU_TYPES`.
        images: of the data set.

    Returns:
        Dicts of image_id (the place in `images`), category_id, score, area, iscrowd, and bbox or
        segmentation.
    """
    key = _SHAPE[iou_type]
    shapes = [prediction[key] for prediction in predictions]
    if iou_type == "segm":
        areas = mask_areas(shapes)
    else:
        areas = [width * height for _, _, width, height in shapes]
    return [
        {
            "image_id": images[prediction["image_id"]],
            "category_id": prediction["category_id"],
            "score": prediction["score"],
            "area": area,
            "iscrowd": 0,
            key: shape,
        }
        for prediction, shape, area in zip(predictions, shapes, areas, strict=True)
    ]


def mask_areas(rles: Sequence[Mapping[str, Any]]) -> list[int]:
    """Number of pixels of each mask, a compressed RLE."""
    # pycocotools fails for more than 255 masks with NumPy 2.
    starts = range(0, len(rles), 255)
    return [area for start in starts for area in coco_mask.area(rles[start : start + 255]).tolist()]


def group(items: Iterable[Annotation], key: str) -> dict[Any, list[Annotation]]:
    """Group annotations by the value of a key, in their order."""
    grouped = defaultdict(list)
    for item in items:
        grouped[item[key]].append(item)
    return dict(grouped)


def deal_categories(truth: Mapping[Any, Sequence[Annotation]], num_shares: int) -> list[list[Any]]:
    """Divide the categories that have ground truth into shares of about equal work.

    Categories without ground truth are left out: their AP is undefined.

    Args:
        truth: of each category; the same in every process.
        num_shares: number of processes.
    """
    ordered = sorted(truth, key=lambda category: -len(truth[category]))
    return [ordered[start::num_shares] for start in range(num_shares)]


def category_curves(
    evaluator: Callable[..., Any],
    truth: Sequence[Annotation],
    predictions: Sequence[Annotation],
    record: Callable[[int], dict[str, Any]],
    *,
    iou_type: str,
    max_predictions: Sequence[int],
) -> Curves:
    """Evaluate one category.

    Args:
        evaluator: of `load_backend`.
        truth: of `truth_annotations`, of that category.
        predictions: of `predicted_annotations`, likewise.
        record: returns the image at a place, see `ImageIndex.record`.
        iou_type: of `IOU_TYPES`.
        max_predictions: M limits, rising.
    """
    records = [record(place) for place in sorted({x["image_id"] for x in (*truth, *predictions)})]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(_coco(truth, records), _coco(predictions, records), iou_type)
        evaluation.params.maxDets = list(max_predictions)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _coco(annotations: Sequence[Annotation], images: list[Annotation]) -> COCO:
    """Make a data set of one category. Evaluators take the id 0 for "not matched"."""
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": [
            {**annotation, "id": number, "category_id": 1}
            for number, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": 1, "frequency": "f"}],  # LVIS's key
    }
    coco.createIndex()
    return coco


def join_curves(curves: Mapping[Any, Curves], categories: Sequence[Any], num_limits: int) -> Curves:
    """Concatenate the curves of categories.

    Args:
        curves: of each category that has ground truth.
        categories: all of them, in the order of the K axis.
        num_limits: M.

    Returns:
        Precision (T, R, K, A, M) and recall (T, K, A, M).
    """
    sizes = Params(iouType="segm")
    t, r, a = len(sizes.iouThrs), len(sizes.recThrs), len(sizes.areaRng)
    undefined = np.full((t, r, 1, a, num_limits), -1.0), np.full((t, 1, a, num_limits), -1.0)
    parts = [curves.get(category, undefined) for category in categories]
    precision = np.concatenate([part[0] for part in parts], axis=2)
    return precision, np.concatenate([part[1] for part in parts], axis=1)
