#!/usr/bin/env python3
r"""Compute PQ, AJI and the score of the 2018 Data Science Bowl, the usual metrics for nuclei.

    python tools/score_instances.py --json nuclei/val.json --min-score 0.3 \
        --predictions output/inference/custom_val/coco_instances_results.json

Unlike AP, they compare one segmentation per image: predictions above --min-score, where each pixel
belongs to the best prediction that covers it. All classes count as one; crowd regions are ignored.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from solo_d2.data.coco_json import read_lists
from solo_d2.data.problems import refuse_errors
from solo_d2.data.segmentations import to_rle
from solo_d2.evaluation.average_precision import group
from solo_d2.evaluation.coco_results import index_coco
from solo_d2.evaluation.error_analysis import read_predictions
from solo_d2.utils.commands import probability
from solo_d2.utils.errors import DatasetError
from tools.arguments import entry_point, plain_parser

# IoU thresholds of the Data Science Bowl.
THRESHOLDS = np.arange(0.5, 0.96, 0.05)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="objects in COCO format")
    add("--predictions", type=Path, required=True, metavar="FILE", help="results in COCO format")
    add("--min-score", type=probability, default=0.3, metavar="S", help="default: %(default)s")
    return parser.parse_args(argv)


def label_map(segmentations: Sequence[Any], height: int, width: int) -> NDArray[np.int64]:
    """Number the segmentations from 1 in (H, W); of those that overlap, the first is on top."""
    labels = np.zeros((height, width), np.int64)
    for number in range(len(segmentations), 0, -1):
        mask = coco_mask.decode(to_rle(segmentations[number - 1], height, width))
        labels[mask.astype(bool)] = number
    return labels


def score_image(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, Any]:
    """Compare two label maps (H, W), 0 for background.

    Returns:
        "ious" of the matched pairs (IoU above 0.5), "objects" and "predictions": their numbers,
        "aji" and "bowl": aggregated Jaccard index and Data Science Bowl score of the image, NaN if
        both maps are empty.
    """
    size = truth.max() + 1, predicted.max() + 1
    pairs = np.bincount((truth * size[1] + predicted).ravel(), minlength=size[0] * size[1])
    counts = pairs.reshape(size)
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]  # hidden ones; background is first
    top, left = int((truth == 0).any()), int((predicted == 0).any())
    areas = counts.sum(axis=1)[top:], counts.sum(axis=0)[left:]
    both = counts[top:, left:]
    union = areas[0][:, None] + areas[1] - both
    ious = both / union
    total = sum(map(len, areas))
    if not total:
        return {"ious": [], "objects": 0, "predictions": 0, "aji": math.nan, "bowl": math.nan}
    hits = np.array([(ious > threshold).sum() for threshold in THRESHOLDS])
    best = ious.argmax(axis=1) if ious.size else np.zeros(0, int)
    rows = np.flatnonzero(ious.max(axis=1, initial=0) > 0)
    columns = best[rows]
    outside = np.delete(areas[0], rows).sum() + np.delete(areas[1], np.unique(columns)).sum()
    return {
        "ious": ious[ious > THRESHOLDS[0]].tolist(),
        "objects": len(areas[0]),
        "predictions": len(areas[1]),
        "aji": both[rows, columns].sum() / (union[rows, columns].sum() + outside),
        "bowl": float((hits / (total - hits)).mean()),
    }


def score(json_file: Path, results_file: Path, min_score: float) -> dict[str, float]:
    """Compute the metrics of a data set, in percent; DatasetError for unusable files."""
    content = read_lists(str(json_file), refuse_errors(str(json_file)), json_file.stem)
    for image in content["images"]:
        if not {"height", "width"} <= image.keys():
            raise DatasetError(f"{json_file}: image {image['id']} has no 'height' and 'width'")
    results = read_predictions(results_file, index_coco(content))
    annotations = [a for a in content["annotations"] if not a.get("iscrowd")]
    masks = [a for a in annotations if a.get("segmentation")]
    if not masks:
        raise DatasetError(f"{json_file} has no objects with masks to compare with")
    if len(masks) < len(annotations):
        print(
            f"score_instances: {len(annotations) - len(masks)} of {len(annotations)} annotations "
            f"of {json_file} have no 'segmentation' and are left out",
            file=sys.stderr,
        )
    objects = group(masks, "image_id")
    kept = (r for r in results if r["score"] >= min_score)
    predicted = group(sorted(kept, key=lambda r: -r["score"]), "image_id")
    scores = []
    for image in content["images"]:
        maps = (
            label_map([x["segmentation"] for x in part.get(image["id"], ())], *_size(image))
            for part in (objects, predicted)
        )
        scores.append(score_image(*maps))
    ious = [iou for each in scores for iou in each["ious"]]
    unmatched = sum(each["objects"] + each["predictions"] for each in scores) - 2 * len(ious)
    segmentation = float(np.mean(ious)) if ious else 0.0
    recognition = len(ious) / max(len(ious) + unmatched / 2, 1)
    means = {key: float(np.nanmean([each[key] for each in scores])) for key in ("aji", "bowl")}
    values = {"PQ": segmentation * recognition, "SQ": segmentation, "RQ": recognition}
    values |= {"AJI": means["aji"], "DSB": means["bowl"]}
    return {name: 100 * value for name, value in values.items()}


def _size(image: dict[str, Any]) -> tuple[int, int]:
    return image["height"], image["width"]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    for name, value in score(args.json, args.predictions, args.min_score).items():
        print(f"{name:4}{value:6.1f}")


main = entry_point("score_instances", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
