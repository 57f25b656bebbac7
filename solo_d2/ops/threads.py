"""Threading for many small operations on the host.

Torch splits each operation among its threads and joins them afterwards. For thousands of small
operations, synchronization costs more than computation, particularly when other programs use the
cores too. Here each thread processes whole jobs instead.

`torch.set_num_threads` sets the number of threads of the calling thread and of all threads started
later. The underlying functions of OpenMP and MKL set that of the calling thread only.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@functools.cache
def _thread_setters() -> dict[str, Callable[[int], int]]:
    """Return the functions that set the calling thread's number, by name; {} without OpenMP."""
    try:
        library = ctypes.CDLL(torch._C.__file__)  # also searches the libraries torch is linked to
    except OSError:
        return {}
    names = ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")
    found = {name: getattr(library, name) for name in names if hasattr(library, name)}
    return found if names[0] in found else {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run host operations in the calling thread only; other threads are not affected.

    Has no effect without OpenMP, where torch has one number for all threads.
    """
    setters = _thread_setters()
    # A thread's first call adopts the process's number, which would undo the setting below.
    before = {name: torch.get_num_threads() for name in setters}
    for name, set_number in setters.items():
        previous = set_number(1)
        if name.startswith("MKL"):  # returns the previous number; 0: chosen by MKL
            before[name] = previous
    try:
        yield
    finally:
        for name, set_number in setters.items():
            set_number(before[name])


def in_threads(work: Callable[[], None]) -> None:
    """Call a function in as many threads as torch uses, each of its operations in one thread.

    The caller's autocast does not apply to them.

    Args:
        work: takes jobs from an iterator shared by all threads; must not need gradients.
    """
    num_threads = torch.get_num_threads()
    inference_mode = torch.is_inference_mode_enabled()

    def call(_thread: int) -> None:
        # Modes and the number of threads are thread-local.
        no_autocast = torch.autocast("cpu", enabled=False)
        with one_thread(), torch.inference_mode(inference_mode), torch.no_grad(), no_autocast:
            work()

    if num_threads == 1 or not _thread_setters():
        call(0)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(call, range(num_threads)))
