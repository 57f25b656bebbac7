"""The number of parallel threads or processes."""

import os

# More workers gain little: disk and locks are the limit.
_MOST = 8


def num_workers() -> int:
    """Return the number of cores available to this process, at most 8."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    return min(cores, _MOST)
