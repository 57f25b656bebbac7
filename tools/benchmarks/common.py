"""Shared parts of the benchmarks: arguments, timing, peak memory, machine, tables and files.

A result is a dict for JSON. "milliseconds" and "peak_bytes" hold one value, or one per function by
name.
"""

import argparse
import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Measurement, TaskSpec, Timer

from solo_d2.utils.files import save_json

MIB = 1 << 20
CPU = torch.device("cpu")
# Minimum seconds per function and round; slower functions are called twice.
MIN_RUN_TIME = 0.1

Functions = Mapping[str, Callable[[], Any]]
# Milliseconds of a call: "median" and "iqr", the interquartile range.
Timing = dict[str, float]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks share."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def parse_size(text: str) -> tuple[int, int]:
    """Parse height and width from "200x304"."""
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 200x304") from None
    return height, width


def begin(args: argparse.Namespace, device: torch.device | None = None) -> dict[str, Any]:
    """Set the number of threads; describe and print the machine."""
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(device or args.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    return machine


def save(args: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Write the results to --output, if given."""
    if args.output:
        save_json(args.output, content)


def measure(functions: Functions, repeats: int) -> dict[str, Timing]:
    """Time functions alternately for `repeats` rounds, so that noise affects all of them alike.

    CUDA devices are synchronised. Returns the timing of each function, by name.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer("call()", globals={"call": function}, num_threads=threads)
        for name, function in functions.items()
    }
    found: dict[str, list[Measurement]] = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            found[name].append(timer.blocked_autorange(min_run_time=MIN_RUN_TIME))
    return {name: _timing(*Measurement.merge(parts)) for name, parts in found.items()}


def timing_of(seconds: Sequence[float], calls: int = 1) -> Timing:
    """Return the timing of at least one sample, each of `calls` calls."""
    return _timing(Measurement(calls, list(seconds), TaskSpec("", "")))


def _timing(measurement: Measurement) -> Timing:
    return {"median": 1000 * measurement.median, "iqr": 1000 * measurement.iqr}


def compare(functions: Functions, args: argparse.Namespace, **memory: Any) -> dict[str, Any]:
    """Time functions alternately and measure their peak memory.

    The speedup is that of the first function relative to the second. `memory` gives peak_bytes if
    known.
    """
    result = comparison(measure(functions, args.repeats))
    return result | (
        memory or {"peak_bytes": {k: peak_memory(f, args.device) for k, f in functions.items()}}
    )


def comparison(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Return timings as a result, with the speedup of the first relative to the second."""
    ours, reference = list(timings.values())[:2]
    return {"milliseconds": dict(timings), "speedup": reference["median"] / ours["median"]}


class Stopwatch:
    """Accumulates the time of stages; the device is synchronised at their ends.

    Attributes:
        seconds: time of each stage that was entered.
    """

    def __init__(self, device: torch.device):
        """Start at zero."""
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Add the time of a block to the stage."""
        start = self._now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def peak_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Return the peak memory in bytes of a call beyond that before it; None if unavailable.

    On a CPU this is the high-water mark of the process on Linux, after the allocator returns its
    unused memory.
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


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine, to interpret the times."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    described: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def timing_text(timing: Timing) -> str:
    """Format median and interquartile range."""
    return f"{timing['median']:.3g} ({timing['iqr']:.2g})"


def memory_text(num_bytes: int | None) -> str:
    """Format bytes as MiB."""
    return "-" if num_bytes is None else f"{num_bytes / MIB:.0f}"


def size_text(size: Iterable[int]) -> str:
    """Format a size, such as 200x304."""
    return "x".join(map(str, size))


def table_row(result: Mapping[str, Any]) -> dict[str, str]:
    """Format a result as a row of a table; nested results add their columns."""
    row = {}
    for key, value in result.items():
        if key in ("milliseconds", "peak_bytes"):
            unit, text = ("ms", timing_text) if key == "milliseconds" else ("MiB", memory_text)
            is_named = isinstance(value, Mapping) and "median" not in value
            for name, number in (value if is_named else {"": value}).items():
                row[f"{name} {unit}".strip()] = text(number)
        elif isinstance(value, Mapping):
            row |= table_row(value)
        else:
            row[key.replace("_", " ")] = _cell(value)
    return row


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}"
    return size_text(value) if isinstance(value, list | tuple) else str(value)


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Format a table with a row per stage."""
    return markdown_table([table_row({"stage": name, **found}) for name, found in stages.items()])


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows of equal keys as a table."""
    from tabulate import tabulate  # one of Detectron2's packages

    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
