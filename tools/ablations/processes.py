"""Processes beside each other: their GPUs, their logs, their end."""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

# Runs a command with its output in a file and more environment variables; returns the exit code.
Launch = Callable[[Sequence[str], Path, Mapping[str, str]], int]


def gpu_slots(jobs: int, num_gpus: int) -> list[dict[str, str]]:
    """Environment variables that give each of several jobs its GPUs, shared where they run out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = visible if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
    if jobs == 1 or len(devices) < num_gpus:
        return [{} for _ in range(jobs)]
    return [
        {
            "CUDA_VISIBLE_DEVICES": ",".join(
                devices[(job * num_gpus + i) % len(devices)] for i in range(num_gpus)
            )
        }
        for job in range(jobs)
    ]


class Processes:
    """Starts programs and can end those that run, as when the user interrupts."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __call__(self, command: Sequence[str], log: Path, environ: Mapping[str, str]) -> int:
        """Run a command, its output in a file; see `Launch`."""
        with log.open("wb") as file:
            with self._lock:
                if self._stopped:
                    return -1
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environ}
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """End what runs, and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
