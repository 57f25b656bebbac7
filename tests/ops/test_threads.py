"""One thread for a while, and what other threads have meanwhile."""

import os
import signal
import threading

import pytest
import torch

from solo_d2.ops import threads
from solo_d2.ops.threads import in_threads, one_thread, take_number_of_threads


@pytest.fixture(autouse=True)
def _four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def _number_of_new_thread(*calls):
    found = []

    def work():
        for call in calls:
            call()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def test_operations_take_one_thread():
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    assert _number_of_new_thread() == 4


def test_a_thread_that_begins_meanwhile_keeps_no_one_thread():
    """As those of a server do; without the call, it would."""
    with one_thread():
        with one_thread():
            assert _number_of_new_thread() == 1
            assert _number_of_new_thread(take_number_of_threads) == 4
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    assert _number_of_new_thread(take_number_of_threads) == 4


def test_a_number_of_its_own_is_not_taken_from_a_thread():
    def three():
        torch.get_num_threads()
        torch.set_num_threads(3)

    assert _number_of_new_thread(take_number_of_threads, three, take_number_of_threads) == 3


def test_many_threads_at_once():
    begun, numbers = threading.Barrier(20), []

    def work():
        begun.wait(10)
        take_number_of_threads()
        for _ in range(50):
            before = torch.get_num_threads()
            with one_thread():
                numbers.append((before, torch.get_num_threads()))

    all_at_once = [threading.Thread(target=work) for _ in range(20)]
    for thread in all_at_once:
        thread.start()
    for thread in all_at_once:
        thread.join()
    assert set(numbers) == {(4, 1)}
    assert len(numbers) == 1000
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_does_not_wait_for_threads_that_it_has_not():
    begun, ended = threading.Event(), threading.Event()

    def hold():
        with threads._lock:
            begun.set()
            ended.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends it, should it wait
        with one_thread():
            os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended.set()
    thread.join()
    assert code == 7


def test_jobs_are_shared_among_as_many_threads_as_torch_has():
    jobs, together, seen = iter(range(100)), threading.Barrier(4), []

    def work():
        together.wait(10)
        seen.extend((threading.get_ident(), torch.get_num_threads(), job) for job in jobs)

    in_threads(work)
    assert sorted(job for _, _, job in seen) == list(range(100))
    assert {number for _, number, _ in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _, _ in seen}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("number", [1, 4])
def test_modes_go_along(number):
    torch.set_num_threads(number)
    modes = []

    def work():
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    in_threads(work)
    assert set(modes) == {(False, False)}
    with torch.inference_mode():
        in_threads(work)
    assert set(modes[number:]) == {(False, True)}


@pytest.mark.parametrize("number", [1, 4])
def test_errors_arrive(number):
    torch.set_num_threads(number)

    def work():
        raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        in_threads(work)
    assert torch.get_num_threads() == number
