"""Timing of calls on a GPU: latency, throughput, CUDA graph, kernels."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

# Seconds of warm-up, and number of measured calls.
WARM_UP, CALLS = 0.2, 100
# Maximum seconds per measurement, and minimum number of calls.
MOST_SECONDS, LEAST_CALLS = 10.0, 5
# Profiled calls, and listed kernels.
PROFILED, LISTED = 10, 10

Call = Callable[[], Any]


class Meter:
    """Measures calls on a device until a deadline.

    Attributes:
        device: CUDA, or the CPU for a trial run.
        is_trial: whether sizes are small and times are meaningless.
    """

    def __init__(self, device: torch.device, ends: float):
        """Set the device and the deadline in seconds of `time.monotonic`."""
        self.device = device
        self.is_trial = device.type == "cpu"
        self._ends = ends

    def seconds_left(self) -> float:
        """Return the seconds in which measurements may still begin."""
        return self._ends - time.monotonic()

    def wait(self) -> None:
        """Synchronise with the device."""
        if not self.is_trial:
            torch.cuda.synchronize(self.device)

    def all_ways(self, call: Call, *, capture: Call | None = None) -> dict[str, Any]:
        """Run all measurements of a call; the CUDA graph holds `capture`, by default the call."""
        return {
            "latency": self.latency(call),
            "back_to_back_ms": self.back_to_back(call),
            "waits": self.waits(call),
            "kernels": self.kernels(call),
            "graph": self.graph(capture or call),  # last, since it may fail
        }

    def latency(self, call: Call) -> dict[str, Any]:
        """Measure the latency of a call with synchronisation, in milliseconds."""
        self._warm_up(call)
        seconds: list[float] = []
        begun = time.perf_counter()
        while len(seconds) < self._num_calls(begun, len(seconds)):
            start = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - start)
        seconds.sort()
        return {
            "median_ms": 1e3 * statistics.median(seconds),
            "p10_ms": 1e3 * seconds[len(seconds) // 10],
            "p90_ms": 1e3 * seconds[-1 - len(seconds) // 10],
            "calls": len(seconds),
        }

    def back_to_back(self, call: Call) -> float:
        """Measure milliseconds per call without synchronisation in between."""
        self._warm_up(call)
        count, start = 0, time.perf_counter()
        while count < self._num_calls(start, count):
            call()
            count += 1
        self.wait()
        return 1e3 * (time.perf_counter() - start) / count

    def _num_calls(self, begun: float, made: int) -> int:
        """Return the total number of calls to make, as far as known."""
        if self.is_trial:
            return 1
        is_long = time.perf_counter() - begun > MOST_SECONDS and made >= LEAST_CALLS
        return made if is_long else CALLS

    def _warm_up(self, call: Call) -> None:
        if self.is_trial:
            return
        call()
        self.wait()
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_UP:
            call()
            self.wait()

    def waits(self, call: Call) -> int | None:
        """Count the device synchronisations of a call; None on a CPU."""
        if self.is_trial:
            return None
        call()
        self.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(w.message) for w in caught)

    def graph(self, call: Call) -> dict[str, Any]:
        """Measure a CUDA graph of a call, or return why there is none."""
        if self.is_trial:
            return {"unavailable": "CUDA graphs need a GPU"}
        stream = torch.cuda.Stream(self.device)
        try:
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            self.wait()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                kept = call()
        except Exception as error:  # usually an operation that synchronises
            return {"unavailable": f"{type(error).__name__}: {error}".splitlines()[0]}
        found = {**self.latency(graph.replay), "back_to_back_ms": self.back_to_back(graph.replay)}
        del kept  # its memory belongs to the graph
        return found

    def kernels(self, call: Call) -> dict[str, Any]:
        """Profile a call: microseconds and count of each kernel, slowest first."""
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CPU] if self.is_trial else [activity.CPU, activity.CUDA]
        self._warm_up(call)
        num = 1 if self.is_trial else PROFILED
        with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
            for _ in range(num):
                call()
            self.wait()
        events = [
            event
            for event in profile.key_averages()
            if self.is_trial or event.device_type == torch.autograd.DeviceType.CUDA
        ]
        kind = "self_cpu_time_total" if self.is_trial else "self_device_time_total"
        rows = sorted(
            ((getattr(event, kind) / num, event.count / num, event.key[:120])
             for event in events), reverse=True
        )  # fmt: skip
        return {
            "microseconds": sum(microseconds for microseconds, _, _ in rows),
            "number": sum(number for _, number, _ in rows),
            "longest": [
                {"name": name, "microseconds": microseconds, "number": number}
                for microseconds, number, name in rows[:LISTED]
            ],
        }
