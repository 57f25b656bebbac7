"""Jobs in threads of their own, and the number of threads that other threads have meanwhile."""

import re
import threading

import pytest
import torch

from solo_d2.ops import threads
from solo_d2.ops.threads import in_threads, one_thread


@pytest.fixture(autouse=True)
def _four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def _number_of_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_operations_take_one_thread():
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        assert _number_of_new_thread() == 4
    assert torch.get_num_threads() == 4
    assert _number_of_new_thread() == 4


def test_new_threads_have_the_number_of_the_process_during_and_after():
    """As those of a server that starts one for each request."""
    during = []

    def work():
        during.extend(_number_of_new_thread() for _ in range(20))

    for _ in range(20):
        in_threads(work)
        assert _number_of_new_thread() == 4
    assert set(during) == {4}
    assert len(during) == 20 * 4 * 20
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("number", [1, 4])
def test_autocast_does_not_reach_jobs(number):
    torch.set_num_threads(number)
    dtypes = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_threads(lambda: dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
    assert dtypes == number * [torch.float32]


def test_each_job_runs_in_one_thread_of_all_libraries():
    said = []
    in_threads(lambda: said.append(torch.__config__.parallel_info()))
    numbers = [
        int(n) for text in said for n in re.findall(r"get_(?:max|num)_threads\(\) : (\d+)", text)
    ]
    assert len(numbers) >= 4
    assert set(numbers) == {1}


def test_without_openmp_jobs_run_in_the_calling_thread(monkeypatch):
    """There torch has one number of threads for all, so that none of them may change it."""
    monkeypatch.setattr(threads, "_thread_setters", dict)
    with one_thread():
        assert torch.get_num_threads() == 4
    seen = []
    in_threads(lambda: seen.append((threading.get_ident(), torch.get_num_threads())))
    assert seen == [(threading.get_ident(), 4)]


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
def test_modes_and_errors_go_along(number):
    torch.set_num_threads(number)
    modes = []

    def work():
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        raise ValueError("in a thread")

    for mode, expected in (
        (torch.enable_grad(), (False, False)),
        (torch.no_grad(), (False, False)),
        (torch.inference_mode(), (False, True)),
    ):
        modes.clear()
        with mode, pytest.raises(ValueError, match="in a thread"):
            in_threads(work)
        assert torch.get_num_threads() == number
        assert 1 <= len(modes) <= number  # threads that have not begun stop after an error
        assert set(modes) == {expected}
