"""The GPU: names, specifications, and measured throughput of copies and products."""

import platform
import re
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from tools.benchmarks.common import describe_machine
from tools.benchmarks.gpu_timing import Meter

# By part of the name, first match: memory in GB/s, and dense bf16 (or fp16) and int8 products in
# 10^12 operations per second, from NVIDIA's data sheets.
CARDS: dict[str, tuple[float, float, float]] = {
    "B200": (8000, 2250, 4500),
    "GH200": (4000, 989, 1979),
    "H200": (4800, 989, 1979),
    "H100 PCIe": (2000, 756, 1513),
    "H100": (3350, 989, 1979),
    "A100-SXM4-80GB": (2039, 312, 624),
    "A100 80GB PCIe": (1935, 312, 624),
    "A100": (1555, 312, 624),
    "A10G": (600, 70, 140),
    "A10": (600, 125, 250),
    "A30": (933, 165, 330),
    "A40": (696, 150, 299),
    "L40S": (864, 362, 733),
    "L4": (300, 121, 242),
    "RTX PRO 6000": (1792, 504, 1007),  # sm_120
    "RTX 5090": (1792, 210, 838),  # sm_120
    "RTX 5080": (960, 113, 450),  # sm_120
    "RTX 4090": (1008, 165, 661),
    "RTX 3090": (936, 71, 284),
    "T4": (320, 65, 130),
    "V100": (900, 125, 0),  # no int8 on tensor cores
}
MIB = 1 << 20


def data_sheet(name: str) -> dict[str, float]:
    """Return NVIDIA's specifications of a card; empty if it is not in `CARDS`."""
    if "Laptop" in name:
        return {}
    for part, (bandwidth, bf16, int8) in CARDS.items():
        if re.search(rf"\b{part}\b", name):
            return {"GB/s": bandwidth, "bf16 TFLOP/s": bf16, "int8 TOP/s": int8}
    return {}


def describe(meter: Meter) -> dict[str, Any]:
    """Return names and versions, specifications, and measured throughput."""
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
        found["data_sheet"] = data_sheet(properties.name)
    for package in ("triton", "detectron2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["measured"] = _ceilings(meter)
    return found


def _ceilings(meter: Meter) -> dict[str, Any]:
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
