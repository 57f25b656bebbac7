"""Mask NMS with overlaps, beside plain PyTorch written from the paper's pseudo-code.

Shape letters: N masks, H and W rows and columns, K classes.

One run measures both in turns, on the same masks. "plain" is one float32 product of all masks,
N x N matrices and a label matrix, as SOLOv2 (arXiv:2003.10152, section 2.2) describes it; for the
types other than matrix it is this project's reference backend.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_d2.inference import NMS
from solo_d2.ops.backends import BACKENDS, choose_backend
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.utils.files import save_json
from tools.benchmarks.common import (
    Peak,
    Timing,
    add_common_arguments,
    describe_machine,
    gpu_peak,
    markdown_table,
    measure,
    peak_memory,
)
from tools.benchmarks.scenes import make_scene

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py nms`."""
    parser.add_argument("--num", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--size", type=parse_size, nargs="+", default=[(112, 152), (200, 304)])
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 10, 80])
    parser.add_argument("--type", choices=sorted(NMS), nargs="+", default=["matrix"])
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    add_common_arguments(parser)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from "200x304"."""
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 200x304") from None
    return height, width


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    peak = gpu_peak(args)
    results = []
    for size in args.size:
        for num in args.num:
            for num_classes in args.classes:
                for name in args.type:
                    result = _run_case(args, name, num, size, num_classes, peak)
                    results.append(result)
                    print(".", end="", flush=True)
    print("\n\nmilliseconds: median (a tenth below - a tenth above); MiB: peak beyond the masks\n")
    print(markdown_table([_table_row(result) for result in results]))
    if args.output:
        save_json(args.output, {"machine": machine, "results": results})


def plain_matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, *, sigma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Gaussian Matrix NMS as the paper's pseudo-code reads: intersections (N, N), scores (N,)."""
    flat = masks.flatten(1).float()
    intersection = flat @ flat.T
    areas = flat.sum(dim=1).expand_as(intersection)
    iou = (intersection / (areas + areas.T - intersection)).triu(diagonal=1)
    iou = iou * (labels[:, None] == labels[None, :]).float().triu(diagonal=1)
    compensation = iou.amax(dim=0).expand_as(iou).T
    decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * compensation**2)
    return intersection, scores * decay.amin(dim=0)


def _run_case(
    args: argparse.Namespace,
    name: str,
    num: int,
    size: tuple[int, int],
    num_classes: int,
    peak: Peak | None,
) -> dict[str, Any]:
    scene = make_scene(num, size, num_classes, args.seed)
    scene = tuple(x.to(args.device) for x in scene)
    function = NMS[name]
    ours = partial(function, *scene, backend=args.backend)
    plain: Callable[[], Any] = partial(function, *scene, backend="torch")
    if name == "matrix":
        plain = partial(plain_matrix_nms, *scene)
    timings = measure(
        {"ours": ours, "plain": plain}, args.device, repeats=args.repeats, budget=args.budget
    )
    result: dict[str, Any] = {
        "type": name,
        "num": num,
        "size": list(size),
        "classes": num_classes,
        "backend": choose_backend(args.backend, args.device),
        "milliseconds": {key: asdict(timing) for key, timing in timings.items()},
        "speedup": timings["plain"].median / timings["ours"].median,
        "peak_bytes": {
            "ours": peak_memory(ours, args.device),
            "plain": peak_memory(plain, args.device),
        },
        "agreement": agreement(name, scene, args.backend),
        "work": work(*scene[:2]),
    }
    if peak is not None:
        floor = peak.floor_ms(result["work"]["bytes"], result["work"]["operations"])
        result["floor_ms"] = floor
        result["share_of_floor"] = floor / timings["ours"].median
    return result


def agreement(name: str, scene: tuple[Tensor, ...], backend: str) -> dict[str, float]:
    """How far we are from plain: pairs with another pixel count, and the largest score difference.

    Args:
        name: of the NMS.
        scene: masks, labels, scores.
        backend: ours.
    """
    masks, labels, scores = scene
    ours = NMS[name](*scene, backend=backend)
    counts, expected = plain_matrix_nms(*scene)
    if name != "matrix":
        expected = NMS[name](*scene, backend="torch")
    competes = (labels[:, None] == labels[None, :]).triu()
    differs = (mask_overlaps(masks, labels, backend=backend) != counts) & competes
    return {
        "pairs_that_differ": int(differs.sum()),
        "largest_score_difference": float((ours - expected).abs().max()) if len(scores) else 0.0,
    }


def work(masks: Tensor, labels: Tensor) -> dict[str, float]:
    """What cannot be avoided when 0/1 bytes are multiplied.

    Each byte of the masks is read once. Of each pair of one class, the pixels in the common part of
    their boxes are multiplied and summed up (two operations a pixel).
    """
    boxes = mask_boxes(masks).double()
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    pixels = (high - low).clamp(min=0).prod(dim=2)
    competes = (labels[:, None] == labels[None, :]).triu(diagonal=1)
    return {
        "bytes": float(masks.numel()),
        "operations": 2 * float((pixels * competes).sum()),
    }


def _table_row(result: dict[str, Any]) -> dict[str, str]:
    timings = {key: Timing(**value) for key, value in result["milliseconds"].items()}
    memory = {
        key: "-" if value is None else f"{value / MIB:.0f}"
        for key, value in result["peak_bytes"].items()
    }
    row = {
        "NMS": result["type"],
        "N": str(result["num"]),
        "size": "x".join(str(side) for side in result["size"]),
        "classes": str(result["classes"]),
        f"ours ({result['backend']}) ms": str(timings["ours"]),
        "plain ms": str(timings["plain"]),
        "speed-up": f"{result['speedup']:.1f}",
        "of least": f"{timings['plain'].least / timings['ours'].least:.1f}",
        "ours MiB": memory["ours"],
        "plain MiB": memory["plain"],
        "counts off": str(result["agreement"]["pairs_that_differ"]),
        "scores off": f"{result['agreement']['largest_score_difference']:.1g}",
    }
    if "floor_ms" in result:
        row["floor ms"] = f"{result['floor_ms']:.3g}"
        row["share"] = f"{100 * result['share_of_floor']:.0f} %"
    return row
