"""Compare Matrix NMS, including overlaps, with plain PyTorch written from the paper's pseudo-code.

Shape letters: N masks, H and W rows and columns, K classes.

Both are timed alternately on the same masks. "plain" is a float32 product of all masks with N x N
matrices (SOLOv2, arXiv:2003.10152, section 2.2).
"""

import argparse
import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.ops.matrix_nms import matrix_nms
from tools.benchmarks.common import (
    add_common_arguments,
    begin,
    compare,
    markdown_table,
    parse_size,
    save,
    table_row,
)
from tools.benchmarks.scenes import make_scene


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py nms`."""
    add = parser.add_argument
    add("--num", type=int, nargs="+", default=[100, 500, 2000])
    add("--size", type=parse_size, nargs="+", default=[(112, 152), (200, 304)])
    add("--classes", type=int, nargs="+", default=[1, 10, 80])
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    cases = itertools.product(args.size, args.num, args.classes)
    machine = begin(args)
    results = [_run_case(args, *case) for case in cases]
    print("\nmilliseconds: median (interquartile range); MiB: peak beyond the inputs\n")
    print(markdown_table([table_row(result) for result in results]))
    save(args, {"machine": machine, "results": results})


def plain_matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, *, sigma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Apply Gaussian Matrix NMS as in the paper's pseudo-code.

    Returns intersections (N, N) and scores (N,).
    """
    flat = masks.flatten(1).float()
    intersection = flat @ flat.T
    areas = flat.sum(dim=1).expand_as(intersection)
    iou = (intersection / (areas + areas.T - intersection)).triu(diagonal=1)
    iou = iou * (labels[:, None] == labels[None, :]).float().triu(diagonal=1)
    compensation = iou.amax(dim=0).expand_as(iou).T
    decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * compensation**2)
    return intersection, scores * decay.amin(dim=0)


def _run_case(
    args: argparse.Namespace, size: tuple[int, int], num: int, num_classes: int
) -> dict[str, Any]:
    scene = tuple(x.to(args.device) for x in make_scene(num, size, num_classes, args.seed))
    ours, plain = partial(matrix_nms, *scene), partial(plain_matrix_nms, *scene)
    return {
        "num": num,
        "size": list(size),
        "classes": num_classes,
        "backend": choose_backend("auto", args.device),
        **compare({"ours": ours, "plain": plain}, args),
        "agreement": agreement(*scene),
    }


def agreement(masks: Tensor, labels: Tensor, scores: Tensor) -> dict[str, float]:
    """Count pairs with different intersections and the largest score difference to plain."""
    counts, expected = plain_matrix_nms(masks, labels, scores)
    competes = (labels[:, None] == labels[None, :]).triu()
    differs = (mask_overlaps(masks, labels) != counts) & competes
    differences = (matrix_nms(masks, labels, scores) - expected).abs()
    return {
        "pairs_that_differ": int(differs.sum()),
        "largest_score_difference": max(differences.tolist(), default=0.0),
    }


def work(masks: Tensor, labels: Tensor) -> Tensor:
    """Return (2,) float64: the minimum number of bytes read and of 8-bit operations.

    Each byte of the masks is read once; for each pair of one class, the pixels in the intersection
    of their boxes are multiplied and added.
    """
    boxes = mask_boxes(masks).double()
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    pixels = (high - low).clamp(min=0).prod(dim=2)
    competes = (labels[:, None] == labels[None, :]).triu(diagonal=1)
    return torch.stack([pixels.new_tensor(masks.numel()), 2 * (pixels * competes).sum()]).cpu()
