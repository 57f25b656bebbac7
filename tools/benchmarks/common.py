"""What the benchmarks share: time, peak memory, the floor of a GPU, tables and files."""

import argparse
import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Dense 8-bit integer operations (a multiply-add is two) of one multiprocessor in one clock, by
# compute capability; from the vendor's peak figures over multiprocessors and boost clock.
INT8_OPS_PER_CLOCK = {
    (7, 5): 2048,
    (8, 0): 4096,
    (8, 6): 2048,
    (8, 9): 2048,
    (9, 0): 8192,
    (10, 0): 16384,
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a function that was called several times.

    Attributes:
        median: of all calls.
        least: of all calls.
        low: a tenth of the calls was faster.
        high: a tenth of the calls was slower.
        calls: how many there were, without warm-up.
    """

    median: float
    least: float
    low: float
    high: float
    calls: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        """Summarise at least one sample."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            median=statistics.median(ordered),
            least=ordered[0],
            low=ordered[round(0.1 * last)],
            high=ordered[round(0.9 * last)],
            calls=len(ordered),
        )

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def add_common_arguments(
    parser: argparse.ArgumentParser, *, output: str = "json file for the results"
) -> None:
    """Add what every benchmark takes; `output` says what its --output is."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--threads", type=int, help="of the CPU; default: what torch takes")
    parser.add_argument(
        "--repeats", type=int, default=11, help="calls of each function (%(default)s)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=20.0,
        help="seconds after which a case stops early, with at least 3 calls (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help=output)
    parser.add_argument("--peak-bandwidth", type=float, help="GB/s of a GPU that names none itself")
    parser.add_argument("--peak-int8", type=float, help="dense TOPS of a GPU, likewise")


def measure(
    functions: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    repeats: int = 11,
    budget: float = 20.0,
) -> dict[str, Timing]:
    """Time functions in turns, so that what else the machine does meets all of them alike.

    Args:
        functions: what to time, by name.
        device: where they run. On CUDA the time is the device's, from events about the call.
        repeats: calls of each after one to warm up.
        budget: seconds; once spent, three calls of each are enough.

    Returns:
        The timing of each, by name.
    """
    for function in functions.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - started > budget:
            break
        for name, function in functions.items():
            samples[name].append(_milliseconds(function, device))
    return {name: Timing.of(values) for name, values in samples.items()}


def _milliseconds(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        function()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)
    begin = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - begin)


def peak_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call takes at most beyond what is there before it.

    On a CPU these are pages of the process, of which Linux keeps the high-water mark; what the
    allocator holds back is given up first. None where this is not to be had.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from here
        before = _status_bytes("VmRSS")
        function()
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {key}")


@dataclass(frozen=True)
class Peak:
    """What a GPU could do at best.

    Attributes:
        bandwidth: bytes per second.
        int8: 8-bit operations per second, dense; a multiply-add is two.
    """

    bandwidth: float
    int8: float

    def floor_ms(self, num_bytes: float, num_ops: float) -> float:
        """Milliseconds below which work of that size cannot be done."""
        return 1000 * max(num_bytes / self.bandwidth, num_ops / self.int8)


def gpu_peak(args: argparse.Namespace) -> Peak | None:
    """The peak of `args.device`, from the arguments or else from its properties; None on a CPU.

    Returns None too where a GPU says nothing and no argument does.
    """
    if args.device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(args.device)
    bandwidth, int8 = args.peak_bandwidth, args.peak_int8
    if bandwidth is None and hasattr(properties, "memory_clock_rate"):  # kHz; two bits a clock
        bandwidth = 2 * properties.memory_clock_rate * properties.memory_bus_width / 8 / 1e6
    per_clock = INT8_OPS_PER_CLOCK.get((properties.major, properties.minor))
    if int8 is None and per_clock and hasattr(properties, "clock_rate"):
        int8 = per_clock * properties.multi_processor_count * properties.clock_rate / 1e9
    if bandwidth is None or int8 is None:
        print("no share of the floor: give --peak-bandwidth and --peak-int8")
        return None
    return Peak(bandwidth * 1e9, int8 * 1e12)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a reader must know to judge the figures."""
    described: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as a table; the keys are its head."""
    if not rows:
        return ""
    head = list(rows[0])
    cells = [head] + [[str(row[key]) for key in head] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
