"""Parallel threads, and their number."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# More workers gain little: disk and locks are the limit.
_MOST = 8
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def num_workers() -> int:
    """Return the number of cores available to this process, at most 8."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    return min(cores, _MOST)


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Call a function with each item, in parallel threads; return the results in order."""
    with ThreadPoolExecutor(num_workers()) as pool:
        return list(pool.map(function, items))
