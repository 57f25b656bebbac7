"""COCO's average precision, category by category.

COCO evaluates categories independently. Each is evaluated with only the images that contain it,
because evaluators spend most of their time on empty pairs of image and category; processes share
the categories.

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

from solo_d2.data.segmentations import (
    clean_segmentation,
    is_box,
    is_number,
    segmentation_box,
    to_rle,
)
from solo_d2.utils.errors import ConfigError, DatasetError, shown

# An annotation or prediction in COCO's format.
Annotation = dict[str, Any]
# Precision (T, R, 1, A, M) and recall (T, 1, A, M) of a category, float64.
Curves = tuple[NDArray[np.float64], NDArray[np.float64]]

# IoU types, and the key of a prediction that each compares.
_SHAPE = {"bbox": "bbox", "segm": "segmentation"}
IOU_TYPES = tuple(_SHAPE)
# Predictions per image and category that COCO counts.
COCO_MAX_PREDICTIONS = 100
# Fields of an annotation that evaluators read, besides ids.
_COMPARED = ("iscrowd", "area", "bbox", "segmentation")
# Evaluators with pycocotools' interface, the fastest first: module and class.
BACKENDS = {
    "detectron2": ("detectron2.evaluation.fast_eval_api", "COCOeval_opt"),
    "faster-coco-eval": ("faster_coco_eval", "COCOeval_faster"),
    "pycocotools": ("pycocotools.cocoeval", "COCOeval"),
}


def index_coco(content: dict[str, Any]) -> COCO:
    """Make pycocotools' `COCO` of the content of a JSON file, without its messages."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def load_backend(name: str) -> tuple[str, Callable[..., Any]]:
    """Import an evaluator.

    Args:
        name: a key of `BACKENDS`, or "auto" for the first that is installed.

    Returns:
        Its name, and a function that builds it from truth and predictions (COCO) and the IoU type.

    Raises:
        ConfigError: the name is unknown, or the package is not installed.
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
            # More threads cost CPU time without a gain when processes share the work.
            evaluator = functools.partial(evaluator, rle_iou_max_workers=1)
        return candidate, evaluator
    raise ConfigError(
        f"TEST.AP_BACKEND is {name!r}, but {module} cannot be imported ({problem}): install it, or "
        "set the key to 'auto'"
    ) from problem


def usable_annotations(
    annotations: Iterable[Annotation], images: Mapping[Any, Annotation], categories: Container[Any]
) -> list[Annotation]:
    """Prepare the annotations of a file as training does.

    Empty masks are dropped, and missing boxes and areas filled in, from the segmentation.

    Args:
        annotations: of COCO's format. Those of images that the file does not list are left out.
        images: by id, with height and width.
        categories: ids of all categories.

    Raises:
        DatasetError: an annotation cannot be used.
    """
    kept = []
    for annotation in annotations:
        if annotation.get("image_id") not in images:
            continue
        image = images[annotation["image_id"]]
        category, crowd = annotation.get("category_id"), annotation.get("iscrowd", 0)
        try:
            for key, valid in (
                ("category_id", category in categories),
                ("iscrowd", crowd in (0, 1)),
            ):
                if not valid:
                    raise ValueError(f"'{key}' cannot be {shown(annotation.get(key))}")
            size = image["height"], image["width"]
            segmentation = clean_segmentation(annotation.get("segmentation"), *size)
        except (ValueError, TypeError) as error:
            raise DatasetError(f"annotation {shown(annotation.get('id'))}: {error}") from error
        if segmentation is None:
            continue
        box, area = annotation.get("bbox"), annotation.get("area")
        if not is_box(box):
            box = segmentation_box(segmentation)
        if not is_number(area):
            area = int(coco_mask.area(to_rle(segmentation, *size)))
        filled = {"iscrowd": int(crowd), "area": area, "bbox": box, "segmentation": segmentation}
        kept.append(annotation | filled)
    return kept


def group(items: Iterable[Annotation], key: str) -> dict[Any, list[Annotation]]:
    """Group annotations by the value of a key, in their order."""
    grouped = defaultdict(list)
    for item in items:
        grouped[item[key]].append(item)
    return dict(grouped)


def category_curves(
    evaluator: Callable[..., Any],
    truth: Sequence[Annotation],
    predictions: Sequence[Annotation],
    image: Callable[[Any], Annotation],
    *,
    iou_type: str,
    max_predictions: Sequence[int],
) -> Curves:
    """Evaluate one category.

    Args:
        evaluator: of `load_backend`.
        truth: of `usable_annotations`, of that category.
        predictions: of COCO's result format, likewise.
        image: returns the image of an id in COCO's format.
        iou_type: of `IOU_TYPES`.
        max_predictions: M limits, rising.
    """
    key = _SHAPE[iou_type]
    area = coco_mask.area if iou_type == "segm" else lambda box: box[2] * box[3]
    found = [
        {"score": item["score"], "iscrowd": 0, "area": area(item[key]), key: item[key]}
        for item in predictions
    ]
    objects = [{name: item[name] for name in _COMPARED} for item in truth]
    # Evaluators in C++ take integer ids, but those of images may be texts.
    ids = {item["image_id"] for item in (*truth, *predictions)}
    numbers = {key: n for n, key in enumerate(sorted(ids, key=lambda x: (isinstance(x, str), x)))}
    images = [{**image(key), "id": number} for key, number in numbers.items()]

    def data(entries: list[Annotation], items: Sequence[Annotation]) -> COCO:
        for number, (entry, item) in enumerate(zip(entries, items, strict=True), 1):
            # Evaluators take the id 0 for "not matched".
            entry |= {"id": number, "image_id": numbers[item["image_id"]], "category_id": 1}
        # The frequency is a key of LVIS.
        categories = [{"id": 1, "frequency": "f"}]
        return index_coco({"images": images, "annotations": entries, "categories": categories})

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(data(objects, truth), data(found, predictions), iou_type)
        evaluation.params.maxDets = list(max_predictions)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def join_curves(curves: Mapping[Any, Curves], categories: Sequence[Any], num_limits: int) -> Curves:
    """Concatenate the curves of categories, undefined for those without ground truth.

    Returns:
        Precision (T, R, K, A, M) and recall (T, K, A, M), K as `categories` and M `num_limits`.
    """
    sizes = Params(iouType="segm")
    t, r, a = len(sizes.iouThrs), len(sizes.recThrs), len(sizes.areaRng)
    undefined = np.full((t, r, 1, a, num_limits), -1.0), np.full((t, 1, a, num_limits), -1.0)
    precision, recall = zip(*(curves.get(key, undefined) for key in categories), strict=True)
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)
