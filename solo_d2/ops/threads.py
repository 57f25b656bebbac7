"""Many small operations on the host, without threads that wait for one another.

Torch divides each operation among its threads and waits for all of them at its end. For thousands
of small operations in a row the waiting costs more than the computing, and it gets many times
worse when other programs use the cores too. Here each thread takes whole jobs instead.

`torch.set_num_threads` sets the number of the calling thread and that of all threads that begin
later. The functions of OpenMP and MKL behind it set that of the calling thread alone.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@functools.cache
def _thread_setters() -> dict[str, Callable[[int], int]]:
    """Return what sets the number of the calling thread alone, by name; {} without OpenMP."""
    try:
        library = ctypes.CDLL(torch._C.__file__)  # searches the libraries torch is linked with too
    except OSError:
        return {}
    names = ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")
    found = {name: getattr(library, name) for name in names if hasattr(library, name)}
    return found if names[0] in found else {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let operations on the host run in the calling thread alone; other threads keep their number.

    Without OpenMP torch has one number for all threads, and it stays as it is.
    """
    setters = _thread_setters()
    # A thread's first call takes over the process's number, which would undo what is set here.
    before = {name: torch.get_num_threads() for name in setters}
    for name, set_number in setters.items():
        previous = set_number(1)
        if name.startswith("MKL"):  # it returns the number before; 0: MKL decides
            before[name] = previous
    try:
        yield
    finally:
        for name, set_number in setters.items():
            set_number(before[name])


def in_threads(work: Callable[[], None]) -> None:
    """Call a function in as many threads as torch has, each of its operations in one thread.

    Args:
        work: takes its jobs from an iterator that all threads share; must not need gradients.
    """
    num_threads = torch.get_num_threads()
    inference_mode = torch.is_inference_mode_enabled()

    def call(_thread: int) -> None:
        # Modes belong to a thread, and so does the number.
        with one_thread(), torch.inference_mode(inference_mode), torch.no_grad():
            work()

    if num_threads == 1 or not _thread_setters():
        call(0)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(call, range(num_threads)))
