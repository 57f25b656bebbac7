"""The GPU: names, versions, and measured throughput of copies and products."""

import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tools.benchmarks.common import MIB, describe_machine
from tools.benchmarks.gpu_timing import Meter


def describe(meter: Meter) -> dict[str, Any]:
    """Return names, versions and measured throughput."""
    device = meter.device
    found: dict[str, Any] = {**describe_machine(device), "platform": platform.platform()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mib": properties.total_memory // MIB,
            "cuda": torch.version.cuda,
            "devices": torch.cuda.device_count(),
        }
    for package in ("triton", "detectron2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["measured"] = throughput(meter)
    return found


def throughput(meter: Meter) -> dict[str, Any]:
    """Measure copies, kernel launches and matrix products; an error message where one fails."""
    side, num_bytes = (64, MIB) if meter.is_trial else (8192, 1024 * MIB)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=meter.device)
    target, one = torch.empty_like(source), torch.zeros(1, device=meter.device)
    found: dict[str, Any] = {
        "copy GB/s": 2 * num_bytes / 1e6 / meter.back_to_back(partial(target.copy_, source)),
        "launch_us": 1e3 * meter.back_to_back(partial(one.add_, 1)),
        "launch_and_wait_us": 1e3 * meter.latency(partial(one.add_, 1))["median_ms"],
    }
    del source, target
    for name, dtype in (
        ("bf16 TFLOP/s", torch.bfloat16),
        ("fp16 TFLOP/s", torch.float16),
        ("int8 TOP/s", torch.int8),
        ("float32 TFLOP/s", torch.float32),
    ):
        a = torch.ones(side, side, dtype=dtype, device=meter.device)
        product = partial(a.mm, a)
        if dtype == torch.int8:
            product = partial(torch._int_mm, a, a.T.contiguous().T)
        try:
            found[name] = 2 * side**3 / 1e9 / meter.back_to_back(product)
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0]
    return found
