"""COCO's average precision, category by category, by the best evaluator at hand.

Categories never meet in COCO's rules, so each is given to the evaluator alone, with the images that
have something of it. The figures are the same; but the evaluators spend most of their time on pairs
of an image and a category without objects and predictions, of which COCO has 30 for one that is not
empty and LVIS thousands, and a category is small enough to be given to another process.

T IoU thresholds, R recall levels, K categories, A area ranges, M limits of predictions per image
and category: COCO's axes. Absent figures are -1, as pycocotools has it.
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

from solo_d2.data.problems import Refusal
from solo_d2.data.segmentations import clean_segmentation, is_number
from solo_d2.utils.errors import ConfigError, DatasetError, shown

# Annotations or predictions of COCO's format, and those of each category id.
Annotation = dict[str, Any]
ByCategory = Mapping[Any, Sequence[Annotation]]
# Precision (T, R, 1, A, M) and recall (T, 1, A, M) of a category, float64.
Curves = tuple[NDArray[np.float64], NDArray[np.float64]]

# What a prediction is compared by.
_SHAPE = {"bbox": "bbox", "segm": "segmentation"}
IOU_TYPES = tuple(_SHAPE)
# Evaluators with the interface of pycocotools, the fastest first: module and class.
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
    """Places of the images of a data set in the order of their ids, and their sizes.

    Evaluators written in C++ take whole numbers alone; ids may be texts.
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


def truth_annotations(
    annotations: Iterable[Mapping[str, Any]], images: ImageIndex
) -> list[Annotation]:
    """What is compared with predictions, in its order.

    Args:
        annotations: of COCO's format. Without `iscrowd` they are no crowd regions; those of images
            that the file does not list are left out.
        images: of the data set.

    Returns:
        Dicts of image_id (the place in `images`), category_id, iscrowd, area, bbox and
        segmentation.
    """
    return [
        {
            "image_id": images[annotation["image_id"]],
            "category_id": annotation["category_id"],
            "iscrowd": int(annotation.get("iscrowd", 0)),
            "area": annotation["area"],
            "bbox": annotation["bbox"],
            "segmentation": _with_whole_size(annotation.get("segmentation")),
        }
        for annotation in annotations
        if annotation["image_id"] in images.place
    ]


def _with_whole_size(segmentation: Any) -> Any:
    """Return a segmentation with integers in an RLE's size, which faster-coco-eval requires."""
    if not isinstance(segmentation, dict):
        return segmentation
    return {**segmentation, "size": [int(side) for side in segmentation["size"]]}


def check_annotations(
    annotations: Iterable[Mapping[str, Any]], images: ImageIndex, categories: Container[Any]
) -> None:
    """Check the entries of an annotation file that `truth_annotations` and evaluators read.

    Args:
        annotations: of COCO's format.
        images: of the data set.
        categories: ids of all categories.

    Raises:
        DatasetError: naming the annotation.
    """
    for annotation in annotations:
        where = f"annotation {shown(annotation.get('id'))}"
        if annotation.get("image_id") not in images.place:
            continue
        if annotation.get("category_id") not in categories:
            category = shown(annotation.get("category_id"))
            raise DatasetError(f"{where}: category_id {category} is not among the 'categories'")
        if annotation.get("iscrowd", 0) not in (0, 1):
            value = shown(annotation["iscrowd"])
            raise DatasetError(f"{where}: 'iscrowd' must be 0 or 1, it is {value}")
        if not is_number(annotation.get("area")):
            value = shown(annotation.get("area"))
            raise DatasetError(f"{where}: 'area' must be a number, it is {value}")
        box = annotation.get("bbox")
        if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_number, box)):
            raise DatasetError(f"{where}: 'bbox' must be four numbers, it is {shown(box)}")
        segmentation = annotation.get("segmentation")
        size = images.sizes[images[annotation["image_id"]]]
        try:
            clean_segmentation(segmentation, *size)
            if isinstance(segmentation, list):  # pycocotools takes fewer than training does
                coco_mask.frPyObjects(segmentation, *size)
        except Refusal as error:
            raise DatasetError(f"{where}: {error}") from error
        except Exception as error:
            reason = "pycocotools cannot draw its polygons, each of which needs 3 points"
            raise DatasetError(f"{where}: {reason}: {shown(segmentation)}") from error


def predicted_annotations(
    predictions: Sequence[Mapping[str, Any]], iou_type: str, images: ImageIndex
) -> list[Annotation]:
    """What is compared with the truth. Areas are those of what is compared, masks or boxes.

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


def by_category(annotations: Iterable[Annotation]) -> dict[Any, list[Annotation]]:
    """Group annotations by category id, in their order."""
    grouped = defaultdict(list)
    for annotation in annotations:
        grouped[annotation["category_id"]].append(annotation)
    return dict(grouped)


def deal_categories(truth: ByCategory, num_shares: int) -> list[list[Any]]:
    """Share the categories that have ground truth, so that the shares are about equal.

    Categories without are left out: their figures are absent, whatever is predicted.

    Args:
        truth: of each category; the same in every process.
        num_shares: how many.
    """
    ordered = sorted(truth, key=lambda category: -len(truth[category]))
    return [ordered[start::num_shares] for start in range(num_shares)]


def category_curves(
    evaluator: Callable[..., Any],
    truth: Sequence[Annotation],
    predictions: Sequence[Annotation],
    images: ImageIndex,
    *,
    iou_type: str,
    max_predictions: Sequence[int],
) -> Curves:
    """Evaluate one category.

    Args:
        evaluator: of `load_backend`.
        truth: of `truth_annotations`, of that category.
        predictions: of `predicted_annotations`, likewise.
        images: of the data set.
        iou_type: of `IOU_TYPES`.
        max_predictions: M limits, rising.
    """
    present = sorted({item["image_id"] for item in (*truth, *predictions)})
    records = [
        {"id": place, "height": images.sizes[place][0], "width": images.sizes[place][1]}
        for place in present
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(_coco(truth, records), _coco(predictions, records), iou_type)
        evaluation.params.maxDets = list(max_predictions)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _coco(annotations: Sequence[Annotation], images: list[Annotation]) -> COCO:
    """A data set of one category. Ids begin with 1, as evaluators take 0 for "not matched"."""
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": [
            {**annotation, "id": number, "category_id": 1}
            for number, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": 1}],
    }
    coco.createIndex()
    return coco


def join_curves(curves: Mapping[Any, Curves], categories: Sequence[Any], num_limits: int) -> Curves:
    """Put categories beside each other.

    Args:
        curves: of each category that has ground truth.
        categories: all of them, in the order of the K axis.
        num_limits: M.

    Returns:
        Precision (T, R, K, A, M) and recall (T, K, A, M).
    """
    parameters = coco_parameters()
    sizes = len(parameters.iouThrs), len(parameters.recThrs), len(parameters.areaRng)
    absent = (
        np.full((sizes[0], sizes[1], 1, sizes[2], num_limits), -1.0),
        np.full((sizes[0], 1, sizes[2], num_limits), -1.0),
    )
    parts = [curves.get(category, absent) for category in categories]
    precision = np.concatenate([part[0] for part in parts], axis=2)
    recall = np.concatenate([part[1] for part in parts], axis=1)
    return precision, recall


def coco_parameters() -> Any:
    """COCO's IoU thresholds, recall levels and area ranges."""
    from pycocotools.cocoeval import Params

    return Params(iouType="segm")
