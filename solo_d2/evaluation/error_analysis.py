"""Measure the AP lost to masks, classes and duplicates (SOLO, arXiv:1912.04488, table 7).

The paper replaces each predicted mask by the ground-truth mask with the largest overlap, which
raises AP from 37.1 to 68.1 (ResNet-101); the rest is lost to classes, duplicates, scores and missed
objects. Here the mask, the class or both are replaced, and duplicates can be removed. The paper
does not specify details; these are ours:

- The matched ground truth has the largest mask IoU in the image, in any class; the first of equal
  ones. Crowd regions are ignored.
- A prediction that overlaps no ground truth is unchanged.

Removing duplicates alone can lower AP, because the highest score may not have the best mask.

M predictions and N objects of an image.
"""

import contextlib
import io
import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOeval_opt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tabulate import tabulate

from solo_d2.data.coco_json import load_json
from solo_d2.data.segmentations import is_number, to_rle
from solo_d2.evaluation.build import build_evaluator
from solo_d2.utils.errors import ConfigError, DatasetError

# The first metrics of COCO's summary, in its order.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# A prediction in COCO's result format, and an annotation of the ground truth.
Prediction = dict[str, Any]
Annotation = dict[str, Any]

MASKS, CLASSES, DUPLICATES = "segmentation", "category_id", "duplicates"
# What is replaced by that of the matched ground truth. DUPLICATES keeps only the highest score of
# the predictions with the same ground truth and (corrected) class; the first of equal ones.
CORRECTIONS = {
    "as predicted": (),
    "true masks": (MASKS,),
    "true classes": (CLASSES,),
    "no duplicates": (DUPLICATES,),
    "true masks and classes": (MASKS, CLASSES),
    "all three": (MASKS, CLASSES, DUPLICATES),
}


def load_ground_truth(cfg: CfgNode, dataset_name: str) -> COCO:
    """Read the annotations of a registered data set as its evaluator does.

    Raises:
        ConfigError: the data set does not use the COCO metrics, or the model predicts contours.
        DatasetError: there are no annotations, or they cannot be read.
    """
    if cfg.MODEL.SOLO.MASK_TARGET == "contour":
        raise ConfigError(
            "MODEL.SOLO.MASK_TARGET is 'contour', but the analysis supports only 'mask': it "
            "compares whole masks"
        )
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_evaluator(cfg, dataset_name, folder)
    if not isinstance(evaluator, COCOEvaluator):
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        raise ConfigError(
            f"Data set '{dataset_name}' has evaluator_type '{kind}', but the analysis supports "
            "only 'coco'"
        )
    ground_truth = evaluator._coco_api
    if not ground_truth.dataset.get("annotations"):
        raise DatasetError(
            f"Data set '{dataset_name}' has no annotations, so there is nothing to compare with"
        )
    return ground_truth


def read_predictions(file: str | Path, ground_truth: COCO) -> list[Prediction]:
    """Read predictions in COCO's result format.

    Args:
        file: coco_instances_results.json of an evaluation.
        ground_truth: annotations of the same data set.

    Returns:
        Dicts of image_id, category_id, score and segmentation (compressed RLE), in file order.

    Raises:
        DatasetError: the file or an entry is unusable, or is for another data set.
    """
    try:
        entries = load_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"The predictions {file} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise DatasetError(f"{file} is no list of predictions in COCO's result format")
    predictions = []
    for index, entry in enumerate(entries):
        try:
            predictions.append(_checked(entry, ground_truth))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatasetError(f"{file}: prediction {index}: {error}") from error
    return predictions


def _checked(entry: Any, ground_truth: COCO) -> Prediction:
    """Check a prediction and select its keys; raise ValueError."""
    keys = ("image_id", "category_id", "score", "segmentation")
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            raise ValueError(f"it has no '{key}'")
    for key, known in (("image_id", ground_truth.imgs), ("category_id", ground_truth.cats)):
        if entry[key] not in known:
            raise ValueError(
                f"its {key} {entry[key]} is not in the annotations, so it is for another data set"
            )
    if not is_number(entry["score"]):
        raise ValueError(f"its score is {entry['score']!r}, but must be a finite number")
    image = ground_truth.imgs[entry["image_id"]]
    rle = to_rle(entry["segmentation"], image["height"], image["width"])
    return {**{key: entry[key] for key in keys}, "segmentation": rle}


def analyze_errors(ground_truth: COCO, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Compute mask AP of predictions, and of predictions with corrected errors.

    Args:
        ground_truth: see `load_ground_truth`.
        predictions: see `read_predictions`.

    Returns:
        num_images, num_objects (without crowd regions), num_predictions, num_unmatched, and rows:
        the metrics of `mask_ap` for each of `CORRECTIONS`.
    """
    matches = match_predictions(ground_truth, predictions)
    return {
        "num_images": len(ground_truth.imgs),
        "num_objects": sum(not x.get("iscrowd", 0) for x in ground_truth.anns.values()),
        "num_predictions": len(predictions),
        "num_unmatched": matches.count(None),
        "rows": {
            name: mask_ap(ground_truth, correct(predictions, matches, correction))
            for name, correction in CORRECTIONS.items()
        },
    }


def match_predictions(
    ground_truth: COCO, predictions: Sequence[Prediction]
) -> list[Annotation | None]:
    """Match each prediction with a ground truth, whose mask is RLE; None without overlap."""
    of_image = defaultdict(list)
    for index, prediction in enumerate(predictions):
        of_image[prediction["image_id"]].append(index)
    matches: list[Annotation | None] = [None] * len(predictions)
    for image_id, indices in of_image.items():
        objects = [
            {**annotation, "segmentation": ground_truth.annToRLE(annotation)}
            for annotation in ground_truth.imgToAnns[image_id]
            if not annotation.get("iscrowd", 0)
        ]
        if not objects:
            continue
        ious = coco_mask.iou(  # (M, N) float64
            [predictions[index]["segmentation"] for index in indices],
            [annotation["segmentation"] for annotation in objects],
            [0] * len(objects),
        )
        for index, row in zip(indices, ious, strict=True):
            if row.max() > 0:
                matches[index] = objects[row.argmax()]
    return matches


def correct(
    predictions: Sequence[Prediction],
    matches: Sequence[Annotation | None],
    correction: Collection[str],
) -> list[Prediction]:
    """Apply a correction, see `CORRECTIONS`, to the predictions with a match; keep their order."""
    keys = [key for key in (MASKS, CLASSES) if key in correction]
    corrected = [
        {**prediction, **{key: match[key] for key in keys if match is not None}}
        for prediction, match in zip(predictions, matches, strict=True)
    ]
    if DUPLICATES not in correction:
        return corrected
    best: dict[Any, int] = {}
    for index in sorted(range(len(corrected)), key=lambda index: -corrected[index]["score"]):
        match = matches[index]
        key = index if match is None else (match["id"], corrected[index]["category_id"])
        best.setdefault(key, index)
    return [corrected[index] for index in sorted(best.values())]


def mask_ap(ground_truth: COCO, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Compute COCO's `METRICS` in percent; NaN without such objects or without predictions."""
    if not predictions:
        return dict.fromkeys(METRICS, math.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        results = ground_truth.loadRes([dict(prediction) for prediction in predictions])
        evaluation = COCOeval_opt(ground_truth, results, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = evaluation.stats[: len(METRICS)].tolist()
    return {k: 100 * v if v >= 0 else math.nan for k, v in zip(METRICS, values, strict=True)}


def format_table(analysis: Mapping[str, Any]) -> str:
    """Format the metrics, one line per correction; the last column is the gain in AP."""
    head = (
        "{num_images} images, {num_objects} objects, {num_predictions} predictions, of which "
        "{num_unmatched} overlap none"
    )
    rows, first = [], analysis["rows"]["as predicted"]["AP"]
    for name, row in analysis["rows"].items():
        figures = [f"{row[metric]:.1f}" for metric in METRICS] + [f"{row['AP'] - first:+.1f}"]
        rows.append([name, *("-" if "nan" in figure else figure for figure in figures)])
    align = ("left", *["right"] * (len(METRICS) + 1))
    titles = ["", *METRICS, "gain"]
    table = tabulate(rows, titles, tablefmt="plain", disable_numparse=True, colalign=align)
    return f"{head.format_map(analysis)}\n\n{table}"


def to_json(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the analysis for JSON, with null for NaN."""
    rows = {
        name: {key: None if math.isnan(value) else value for key, value in row.items()}
        for name, row in analysis["rows"].items()
    }
    return {**analysis, "rows": rows}
