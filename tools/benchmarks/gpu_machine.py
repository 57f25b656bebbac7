"""The GPU: names, versions, and measured throughput of copies and products."""

import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from tools.benchmarks.common import describe_machine
from tools.benchmarks.gpu_timing import Meter

MIB = 1 << 20


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
    some = source[: num_bytes // 8]
    pageable = torch.empty(len(some), dtype=torch.uint8)
    found["to pageable host GB/s"] = (
        len(some) / 1e6 / meter.back_to_back(partial(pageable.copy_, some))
    )
    if not meter.is_trial:
        pinned = pageable.pin_memory()
        copy = partial(pinned.copy_, some, non_blocking=True)
        found["to pinned host GB/s"] = len(some) / 1e6 / meter.back_to_back(copy)
    del source, target, some
    for name, product in _products(side, meter.device).items():
        try:
            found[name] = 2 * side**3 / 1e9 / meter.back_to_back(product)
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0]
    return found


def _products(side: int, device: torch.device) -> dict[str, Any]:
    """Return products of square matrices, by the name of their rate."""

    def factor(dtype: torch.dtype) -> Tensor:
        return torch.ones(side, side, dtype=dtype, device=device)

    def multiply(dtype: torch.dtype, *, tf32: bool = False) -> Any:
        a = factor(dtype)
        if dtype == torch.int8:
            return partial(torch._int_mm, a, a.T.contiguous().T)
        return partial(_multiply_float32, a, tf32) if dtype == torch.float32 else partial(a.mm, a)

    return {
        "bf16 TFLOP/s": multiply(torch.bfloat16),
        "fp16 TFLOP/s": multiply(torch.float16),
        "int8 TOP/s": multiply(torch.int8),
        "float32 TFLOP/s": multiply(torch.float32),
        "tf32 TFLOP/s": multiply(torch.float32, tf32=True),
    }


def _multiply_float32(a: Tensor, tf32: bool) -> Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return a @ a
    finally:
        torch.set_float32_matmul_precision(before)
