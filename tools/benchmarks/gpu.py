"""Test and measure this project on a GPU: correctness, then speed, part by part.

Needs torch, numpy and this folder; "inference" and "training" also need Detectron2 and report if it
is missing. --output is rewritten after each part. No part begins after --minutes.

  machine      the GPU, and measured throughput of copies and products
  correctness  every kernel compared with plain PyTorch: odd sizes, one mask and none, NaN, half
               precision, uninitialised memory, a second GPU if available
  nms          Matrix NMS with overlaps: one call, a CUDA graph, its kernels, plain PyTorch
  postprocess  the same from logits to final masks at 800x1216, and run lengths
  inference    whole models in several precisions and as CUDA graphs, on a scene with objects
  training     training steps, and how often one synchronises with the device

Times are medians of 100 calls after 200 ms of warm-up, in milliseconds. --device cpu makes a trial
run at small sizes, which only tests the command.
"""

import argparse
import functools
import pprint
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.matrix_nms import matrix_nms
from solo_d2.ops.rle import run_lengths
from solo_d2.utils.errors import ConfigError
from tools.benchmarks import gpu_checks, gpu_models
from tools.benchmarks.common import save
from tools.benchmarks.gpu_machine import describe, throughput
from tools.benchmarks.gpu_timing import Meter
from tools.benchmarks.head_outputs import make_outputs, to_device
from tools.benchmarks.nms import plain_matrix_nms, work
from tools.benchmarks.postprocess import MASK_STRIDE, Ours, Plain, decode
from tools.benchmarks.scenes import make_scene

# Whether `benchmark.py` adds --import to this command, which needs Detectron2.
HAS_IMPORTS = False
NUM_CLASSES = 80
# Minimum seconds left to begin a part.
LEAST_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py gpu`."""
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="no part begins later (%(default)s)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--device", type=torch.device, default=torch.device("cuda"), help="cuda, cuda:1, ...; cpu "
        "for a trial run")  # fmt: skip
    add("--output", type=Path, help="JSON file for the results")


def run(args: argparse.Namespace) -> int:
    """Measure part after part; return 1 if a check or part fails, else 0."""
    device = args.device
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(f"--device {device} must be a CUDA device, or cpu for a trial run")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available; --device cpu makes a trial run")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"--device {device} does not exist: {torch.cuda.device_count()} are available"
            )
        torch.cuda.set_device(device)
    ends = time.monotonic() + 60 * args.minutes
    meter = Meter(device, ends)
    results: dict[str, Any] = {"trial": meter.is_trial}
    for name in dict.fromkeys(args.parts):
        if meter.seconds_left() < LEAST_SECONDS:
            results[name] = {"skipped": f"--minutes {args.minutes:g} are over"}
        else:
            print(f"\n## {name}", flush=True)
            results[name] = run_part(functools.partial(PARTS[name], meter))
        pprint.pp(results[name], width=120, compact=True)
        save(args, results)
    wrong = [name for name, found in results.items() if is_wrong(found)]
    print(f"\nwrong: {', '.join(wrong) or 'nothing'}")
    return 1 if wrong else 0


def run_part(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a part; on failure return the error, so that other parts continue."""
    start = time.monotonic()
    try:
        found = part()
    except ImportError as error:
        found = {"unavailable": f"{error}"}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": time.monotonic() - start}


def is_wrong(found: Any) -> bool:
    """Return whether a part or one of its checks failed."""
    if not isinstance(found, Mapping):
        return False
    return "error" in found or bool(found.get("wrong")) or any(map(is_wrong, found.values()))


def _nms(meter: Meter) -> dict[str, Any]:
    found: dict[str, Any] = {}
    limits = throughput(meter)
    cases = [(20, (24, 37))] if meter.is_trial else [(500, (200, 304)), (1000, (200, 304))]
    for num, size in cases:
        scene = tuple(x.to(meter.device) for x in make_scene(num, size, NUM_CLASSES))
        ours = functools.partial(matrix_nms, *scene)
        measured = meter.all_ways(ours)
        measured["plain"] = meter.latency(functools.partial(plain_matrix_nms, *scene))
        reference = functools.partial(matrix_nms, *scene, backend="torch")
        measured["backend torch"] = meter.latency(reference)
        measured["times faster than plain"] = (
            measured["plain"]["median_ms"] / measured["latency"]["median_ms"]
        )
        num_bytes, operations = work(*scene[:2]).tolist()
        measured |= {"mebibytes": num_bytes / 2**20, "giga_operations": operations / 1e9}
        if isinstance(limits["int8 TOP/s"], float):
            seconds = (
                num_bytes / 1e9 / limits["copy GB/s"],
                operations / 1e12 / limits["int8 TOP/s"],
            )
            measured["floor_ms"] = 1e3 * max(seconds)
        found[f"{num} masks of {size[0]}x{size[1]}"] = measured
    return found


def _postprocess(meter: Meter) -> dict[str, Any]:
    num, size, channels = (30, (20, 30), 16) if meter.is_trial else (600, (200, 304), 256)
    outputs = to_device(make_outputs(num, size, channels, NUM_CLASSES, num), meter.device)
    image_size = MASK_STRIDE * size[0], MASK_STRIDE * size[1]
    ours, plain = Ours(meter.device), Plain(meter.device)
    decoder = ours.decoder
    call = functools.partial(decoder.decode, outputs, [image_size], [image_size])
    backend = choose_backend("auto", meter.device)
    found: dict[str, Any] = {"backend": backend, "candidates": num}
    found |= meter.all_ways(call, capture=gpu_models.device_part(decoder, outputs, [image_size]))
    found["plain"] = meter.latency(
        functools.partial(decode, plain, outputs, image_size, image_size)
    )
    found["times faster than plain"] = found["plain"]["median_ms"] / found["latency"]["median_ms"]
    prediction = call()[0]
    found["instances"] = len(prediction.scores)
    found["run lengths"] = meter.latency(functools.partial(run_lengths, prediction.masks))
    return found


PARTS: dict[str, Callable[[Meter], dict[str, Any]]] = {
    "machine": describe,
    "correctness": gpu_checks.run_checks,
    "nms": _nms,
    "postprocess": _postprocess,
    "inference": gpu_models.inference,
    "training": gpu_models.training,
}
