"""Many small operations on the host, without threads that wait for one another.

Torch divides each operation among its threads and waits for all of them at its end. For thousands
of small operations in a row the waiting costs more than the computing, and it gets a hundred times
worse when other programs use the cores too. Here threads take whole jobs instead.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let operations on the host run in the calling thread alone."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def in_threads(work: Callable[[], None]) -> None:
    """Call a function in as many threads as torch has, each of its operations in one thread.

    Args:
        work: takes its jobs from an iterator that all threads share; must not need gradients.
    """
    num_threads = torch.get_num_threads()
    inference_mode = torch.is_inference_mode_enabled()

    def call(_thread: int) -> None:
        # Modes belong to a thread.
        with torch.inference_mode(inference_mode), torch.no_grad():
            work()

    with one_thread():
        if num_threads == 1:
            call(0)
            return
        # New threads of Python take over the number of threads that holds now.
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(call, range(num_threads)))
