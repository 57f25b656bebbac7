"""How much memory a process keeps of what it does again and again."""

import ctypes
import gc
from pathlib import Path

import numpy as np

MIB = 2**20
# Measurements over which a line is laid.
MEASUREMENTS = 20


def resident_bytes():
    """What the process has in memory, less what its allocator keeps for later (Linux)."""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def growth(work, number, measure=resident_bytes):
    """Bytes by which memory grows in the second half of many calls.

    The first half is for what is made once: buffers of the allocators, of each size. Of the rest
    the slope of a line counts, so that no single measurement does.

    Args:
        work: called with 0, 1, ...
        number: of calls.
        measure: bytes in use.
    """
    places, used = [], []
    gc.collect()
    gc.freeze()  # what was there before need not be searched again
    for index in range(number):
        work(index)
        if index >= number // 2 and index % max(1, number // 2 // MEASUREMENTS) == 0:
            gc.collect()
            places.append(index)
            used.append(measure())
    slope, _ = np.polyfit(places, used, 1)
    return slope * (number - number // 2)
