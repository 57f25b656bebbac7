"""Instances and semantic labels to a panoptic segmentation, beside Detectron2's function.

Shape letters: N instances, H and W rows and columns.

One run measures both in turns, on the same masks and labels, and checks that the results are equal.
"""

import argparse
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.panoptic_merge import merge_panoptic
from solo_d2.utils.files import save_json
from tools.benchmarks.common import (
    Timing,
    add_common_arguments,
    describe_machine,
    markdown_table,
    measure,
    peak_memory,
)
from tools.benchmarks.nms import parse_size
from tools.benchmarks.scenes import make_scene

MIB = 1 << 20
# Of COCO: classes of things, labels of stuff with the one for all things.
NUM_CLASSES, NUM_LABELS = 80, 54
# Published settings.
OVERLAP_THRESH, STUFF_AREA_LIMIT = 0.5, 4096
# Side of the squares of one label, relative to the image.
LABEL_SIDE = 0.15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py panoptic`."""
    parser.add_argument("--num", type=int, nargs="+", default=[10, 30, 100], help="instances")
    parser.add_argument(
        "--size",
        type=parse_size,
        nargs="+",
        default=[(480, 640), (1080, 1920)],
        help="of the image",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = [_run_case(args, num, size) for size in args.size for num in args.num]
    print("\nmilliseconds: median (a tenth below - a tenth above); MiB: peak beyond the inputs\n")
    print(markdown_table([_table_row(result) for result in results]))
    if args.output:
        save_json(args.output, {"machine": machine, "results": results})


def make_labels(size: tuple[int, int], seed: int) -> Tensor:
    """(H, W) int64 in [0, NUM_LABELS): squares, each of one label."""
    side = max(1, int(LABEL_SIDE * min(size)))
    generator = torch.Generator().manual_seed(seed)
    squares = [length // side + 1 for length in size]
    labels = torch.randint(NUM_LABELS, squares, generator=generator)
    labels = labels.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)
    return labels[: size[0], : size[1]].contiguous()


def _run_case(args: argparse.Namespace, num: int, size: tuple[int, int]) -> dict[str, Any]:
    # Imported here, as options are listed where Detectron2 is missing too.
    from tools.benchmarks.panoptic_reference import merge_panoptic_detectron2

    masks, classes, scores = (
        x.to(args.device) for x in make_scene(num, size, NUM_CLASSES, args.seed)
    )
    labels = make_labels(size, args.seed).to(args.device)
    thresholds: dict[str, Any] = {
        "overlap_thresh": OVERLAP_THRESH,
        "stuff_area_limit": STUFF_AREA_LIMIT,
        "score_thresh": 0.0,
    }
    boxes = mask_boxes(masks)
    ours = partial(
        merge_panoptic,
        *(masks, boxes, scores, classes, labels),
        num_labels=NUM_LABELS,
        **thresholds,
    )
    detectron2 = partial(merge_panoptic_detectron2, masks, scores, classes, labels, **thresholds)
    functions = {"ours": ours, "detectron2": detectron2}
    found, expected = ours(), detectron2()
    timings = measure(functions, args.device, repeats=args.repeats, budget=args.budget)
    return {
        "num": num,
        "size": list(size),
        "segments": len(found[1]),
        "equal": torch.equal(found[0], expected[0]) and found[1] == expected[1],
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "speedup": timings["detectron2"].median / timings["ours"].median,
        "peak_bytes": {
            name: peak_memory(function, args.device) for name, function in functions.items()
        },
    }


def _table_row(result: dict[str, Any]) -> dict[str, str]:
    timings = {name: Timing(**values) for name, values in result["milliseconds"].items()}
    memory = {
        name: "-" if value is None else f"{value / MIB:.0f}"
        for name, value in result["peak_bytes"].items()
    }
    return {
        "N": str(result["num"]),
        "size": "x".join(str(side) for side in result["size"]),
        "segments": str(result["segments"]),
        "ours ms": str(timings["ours"]),
        "Detectron2 ms": str(timings["detectron2"]),
        "speed-up": f"{result['speedup']:.1f}",
        "of least": f"{timings['detectron2'].least / timings['ours'].least:.1f}",
        "ours MiB": memory["ours"],
        "Detectron2 MiB": memory["detectron2"],
        "equal": "yes" if result["equal"] else "NO",
    }
