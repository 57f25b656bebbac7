"""Instances and semantic labels to a panoptic segmentation, compared with Detectron2's function.

Shape letters: N instances, H and W rows and columns.

One run measures both alternately, on the same masks and labels, and checks that the
results are equal.
"""

import argparse
import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from torch import Tensor

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.panoptic_merge import merge_panoptic
from tools.benchmarks.common import add_common_arguments, compare, parse_size, run_cases
from tools.benchmarks.scenes import make_scene

# Of COCO: classes of things, labels of stuff with the one for all things.
NUM_CLASSES, NUM_LABELS = 80, 54
# Published settings, but every instance may take part.
THRESHOLDS: dict[str, Any] = {"overlap_thresh": 0.5, "stuff_area_limit": 4096, "score_thresh": 0.0}
# Side of the squares of one label, relative to the image.
LABEL_SIDE = 0.15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py panoptic`."""
    sizes = [(480, 640), (1080, 1920)]
    parser.add_argument("--num", type=int, nargs="+", default=[10, 30, 100], help="instances")
    parser.add_argument("--size", type=parse_size, nargs="+", default=sizes, help="of the image")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    cases = itertools.product(args.size, args.num)
    run_cases(args, (_run_case(args, *case) for case in cases))


def make_labels(size: tuple[int, int], seed: int) -> Tensor:
    """(H, W) int64 in [0, NUM_LABELS): squares, each of one label."""
    side = max(1, int(LABEL_SIDE * min(size)))
    generator = torch.Generator().manual_seed(seed)
    squares = [length // side + 1 for length in size]
    labels = torch.randint(NUM_LABELS, squares, generator=generator)
    labels = labels.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)
    return labels[: size[0], : size[1]].contiguous()


def _run_case(args: argparse.Namespace, size: tuple[int, int], num: int) -> dict[str, Any]:
    scene = make_scene(num, size, NUM_CLASSES, args.seed)
    masks, classes, scores = (x.to(args.device) for x in scene)
    labels = make_labels(size, args.seed).to(args.device)
    inputs = masks, mask_boxes(masks), scores, classes, labels
    # Detectron2's needs neither boxes nor the number of labels.
    instances = SimpleNamespace(pred_masks=masks, scores=scores, pred_classes=classes)
    functions = {
        "ours": partial(merge_panoptic, *inputs, num_labels=NUM_LABELS, **THRESHOLDS),
        "Detectron2": partial(
            combine_semantic_and_instance_outputs, instances, labels, *THRESHOLDS.values()
        ),
    }
    found, expected = (function() for function in functions.values())
    return {
        "num": num,
        "size": list(size),
        "segments": len(found[1]),
        "equal": torch.equal(found[0], expected[0]) and found[1] == expected[1],
        **compare(functions, args),
    }
