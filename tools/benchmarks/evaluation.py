"""Compare COCO metrics by pycocotools, Detectron2, faster-coco-eval and this project.

All are timed alternately on the same predictions, from COCO results to the twelve metrics, which
are compared with those of pycocotools. "plain" calls each package for all categories at once;
"ours" calls it per category, as this project's evaluation does with the first installed package
("auto"). Everything runs in one process.

Predictions are generated, or read from the files of an evaluation (--truth, --predictions).
"""

import argparse
import contextlib
import importlib
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor

from solo_d2.evaluation import average_precision as ap
from solo_d2.evaluation.coco_results import coco_summary
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.rle import encode_masks
from solo_d2.utils.errors import ConfigError
from tools.benchmarks.common import (
    CPU,
    add_common_arguments,
    begin,
    markdown_table,
    measure,
    parse_size,
    peak_memory,
    save,
    table_row,
)
from tools.benchmarks.scenes import make_scene

# As in COCO: classes, mean number of objects per image, share of crowd regions.
NUM_CLASSES, NUM_OBJECTS, CROWD = 80, 7, 0.01
# Predictions per object, false positives, share of wrong classes; 53 predictions per image.
COPIES, FALSE, WRONG_CLASS = 5, 18, 0.1
MOST_MOVED = 8  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py evaluation`."""
    parser.add_argument("--images", type=int, default=500, help="images to generate (%(default)s)")
    parser.add_argument("--size", type=parse_size, default=(480, 640), help="of the images")
    parser.add_argument("--truth", type=Path, help="COCO JSON, instead of generated objects")
    parser.add_argument("--predictions", type=Path, help="COCO results for --truth")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure boxes and masks, print the tables, save the results."""
    machine = begin(args, CPU)
    if args.truth and args.predictions:
        truth, results = (json.loads(file.read_bytes()) for file in (args.truth, args.predictions))
    else:
        truth, results = draw_data_set(args.images, args.size, args.seed)
    counts = {"images": len(truth["images"]), "objects": len(truth["annotations"])}
    counts["predictions"] = len(results)
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    print("\nmilliseconds: median (interquartile range); MiB: peak beyond the inputs")
    tasks = {}
    for task in ("bbox", "segm"):
        tasks[task] = _run_task(args, truth, results, task)
        print(f"\n{task}\n\n{markdown_table([table_row(way) for way in tasks[task]])}")
    save(args, {"machine": machine, "counts": counts, "tasks": tasks})


def draw_data_set(
    num: int, size: tuple[int, int], seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Generate ground truth and predictions in COCO format."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num + 1):
        name = f"{image_id}.png"
        images.append({"id": image_id, "height": size[0], "width": size[1], "file_name": name})
        generator = torch.Generator().manual_seed(seed + image_id)
        count = int(torch.poisson(torch.tensor(float(NUM_OBJECTS)), generator=generator))
        masks, classes, _ = make_scene(count + FALSE, size, NUM_CLASSES, seed + image_id)
        for entry in _annotations(masks[:count], classes[:count], image_id):
            is_crowd = bool(torch.rand((), generator=generator) < CROWD)
            objects.append({**entry, "id": len(objects) + 1, "iscrowd": int(is_crowd)})
        found, labels = _moved_copies(masks[:count], classes[:count], generator)
        found, labels = torch.cat([found, masks[count:]]), torch.cat([labels, classes[count:]])
        for entry in _annotations(found, labels, image_id):
            del entry["area"]
            results.append({**entry, "score": torch.rand((), generator=generator).item()})
    categories = [{"id": key, "name": f"class {key}"} for key in range(1, NUM_CLASSES + 1)]
    return {"images": images, "annotations": objects, "categories": categories}, results


def _moved_copies(
    masks: Tensor, classes: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shift copies of masks by some pixels and replace some of their classes."""
    masks, classes = masks.repeat(COPIES, 1, 1), classes.repeat(COPIES)
    moves = torch.randint(-MOST_MOVED, MOST_MOVED + 1, (len(masks), 2), generator=generator)
    for mask, move in zip(masks, moves.tolist(), strict=True):
        mask.copy_(mask.roll(move, dims=(0, 1)))
    other = torch.randint(NUM_CLASSES, (len(masks),), generator=generator)
    wrong = torch.rand(len(masks), generator=generator) < WRONG_CLASS
    return masks, torch.where(wrong, other, classes)


def _annotations(masks: Tensor, classes: Tensor, image_id: int) -> list[dict[str, Any]]:
    boxes = mask_boxes(masks)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": label + 1,
            "area": area,
            "bbox": box,
            "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
        }
        for label, area, box, rle in zip(
            classes.tolist(),
            masks.sum(dim=(1, 2)).tolist(),
            boxes.tolist(),
            encode_masks(masks),
            strict=True,
        )
    ]


def make_ways(
    truth: dict[str, Any], results: list[dict[str, Any]], task: str
) -> dict[str, Callable[[], Any]]:
    """Return functions that compute the twelve metrics, by name, for each installed package."""
    ways: dict[str, Callable[[], Any]] = {}
    for name in reversed(ap.BACKENDS):
        try:
            evaluator = ap.load_backend(name)[1]
        except ConfigError as error:
            print(error)
            continue
        coco_class, plain = COCO, evaluator
        if name == "faster-coco-eval":  # its own interface uses threads
            package = importlib.import_module("faster_coco_eval")
            coco_class, plain = package.COCO, package.COCOeval_faster
        ways[f"plain, {name}"] = partial(_plain, coco_class, plain, truth, results, task)
        ways[f"ours, {name}"] = partial(coco_metrics, evaluator, truth, results, task)
    return ways


def _plain(coco_class: Any, evaluator: Any, truth: Any, results: Any, task: str) -> Any:
    # Copy, as evaluators modify both. A box would replace the area of the mask.
    left_out = {"segm": "bbox", "bbox": "segmentation"}[task]
    results = [{key: result[key] for key in result if key != left_out} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_class()
        coco.dataset = {**truth, "annotations": [dict(item) for item in truth["annotations"]]}
        coco.createIndex()
        evaluation = evaluator(coco, coco.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:12]


def coco_metrics(
    evaluator: Any,
    truth: Any,
    results: Any,
    task: str,
    limits: tuple[int, ...] = (1, 10, ap.COCO_MAX_PREDICTIONS),
) -> Any:
    """Compute the twelve metrics in [0, 1] as this project's evaluation does."""
    images = {image["id"]: image for image in truth["images"]}
    objects = ap.group(truth["annotations"], "category_id")
    predicted = ap.group(results, "category_id")
    curves = {
        key: ap.category_curves(
            *(evaluator, objects[key], predicted.get(key, []), images.__getitem__),
            iou_type=task,
            max_predictions=limits,
        )
        for key in objects
    }
    categories = sorted(category["id"] for category in truth["categories"])
    return coco_summary(ap.join_curves(curves, categories, len(limits)), limits)[0].stats


def _run_task(
    args: argparse.Namespace, truth: dict[str, Any], results: list[dict[str, Any]], task: str
) -> list[dict[str, Any]]:
    ways = make_ways(truth, results, task)
    metrics = {name: np.asarray(way()) for name, way in ways.items()}
    timings = measure(ways, args.repeats)
    reference = next(iter(ways))
    return [
        {
            "way": name,
            "milliseconds": timings[name],
            "speedup": timings[reference]["median"] / timings[name]["median"],
            "peak_bytes": peak_memory(way, CPU),
            "ap": float(metrics[name][0]),
            "difference": float(np.abs(metrics[name] - metrics[reference]).max()),
        }
        for name, way in ways.items()
    ]
