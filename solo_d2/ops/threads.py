"""Many small operations on the host, without threads that wait for one another.

Torch divides each operation among its threads and waits for all of them at its end. For thousands
of small operations in a row the waiting costs more than the computing, and it gets a hundred times
worse when other programs use the cores too. Here threads take whole jobs instead.

How many threads an operation is divided among belongs to the thread that calls it: it takes over
the process's number at its first operation, then keeps its own. `torch.set_num_threads` sets both.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_this_thread = threading.local()
# How many threads are in `one_thread`, and the process's number before the first of them.
_num_inside, _number_outside = 0, 1


def _begin_anew() -> None:
    """Forget the other threads, which a fork does not have; one of them may have held the lock."""
    global _lock, _num_inside
    _lock, _num_inside = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let operations on the host run in the calling thread alone."""
    global _num_inside, _number_outside
    with _lock:
        num_threads = torch.get_num_threads()
        if _num_inside == 0:
            _number_outside = num_threads
        _num_inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            torch.set_num_threads(num_threads)


def take_number_of_threads() -> None:
    """Let a new thread take over the process's number, not the 1 of a while in another thread.

    What a program may call in threads of its own begins with this; it does something once in each.
    """
    if hasattr(_this_thread, "has_number"):
        return
    with _lock:
        torch.get_num_threads()  # takes it over: before, what is set would be lost
        if _num_inside:
            torch.set_num_threads(_number_outside)
    _this_thread.has_number = True


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

    if num_threads == 1:
        call(0)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(call, range(num_threads)))
