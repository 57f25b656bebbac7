"""How many threads or processes to use at a time."""

import os

# More gain little: they wait for the disk, or for each other.
_MOST = 8


def num_workers() -> int:
    """Cores that this process may use, at most 8."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    return min(cores, _MOST)
