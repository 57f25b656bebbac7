"""Stages work at the same time, keep the order, and end with the first error or on demand."""

import threading
import time

import pytest

from demo.pipeline import Pipeline

pytestmark = pytest.mark.detectron2


def num_threads():
    return sum(thread.name.startswith("demo-") for thread in threading.enumerate())


def test_items_pass_all_stages_in_order():
    stages = {"double": lambda x: 2 * x, "text": str}
    with Pipeline(range(50), stages) as done:
        assert list(done) == [str(2 * x) for x in range(50)]
    assert num_threads() == 0
    with Pipeline([], stages) as done:
        assert list(done) == []


def test_stages_work_at_the_same_time():
    """Each waits until the other one is at work, which one after the other would never end."""
    meeting = threading.Barrier(2, timeout=20)

    def meet(item):
        if 2 <= item < 12:  # by then both have items
            meeting.wait()
        return item

    stages = {"a": lambda item: meet(item), "b": lambda item: meet(item + 1) - 1}
    with Pipeline(range(16), stages) as done:
        assert list(done) == list(range(16))
    assert set(done.seconds) == {"read", "a", "b"}


def test_queues_are_bounded():
    read = []

    def source():
        for item in range(100):
            read.append(item)
            yield item

    with Pipeline(source(), {"same": lambda x: x}, ahead=2) as done:
        items = iter(done)
        next(items)
        time.sleep(0.3)
        # Two queues of two, and one item in each hand.
        assert len(read) <= 8
    assert num_threads() == 0


@pytest.mark.parametrize("where", ["source", "first", "second"])
def test_an_error_comes_after_the_items_before_it(where):
    def fail_at(name, item):
        if name == where and item == 3:
            raise ZeroDivisionError(name)
        return item

    source = (fail_at("source", item) for item in range(10))
    stages = {name: lambda x, name=name: fail_at(name, x) for name in ("first", "second")}
    got = []

    def take():
        with Pipeline(source, stages) as done:
            got.extend(done)

    with pytest.raises(ZeroDivisionError, match=where):
        take()
    assert got == [0, 1, 2]
    assert num_threads() == 0


def test_leaving_early_ends_all_threads():
    def endless():
        while True:
            yield 1

    def take():
        with Pipeline(endless(), {"a": lambda x: x}) as done:
            for _ in done:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take()
    assert num_threads() == 0


def test_of_a_live_source_the_newest_is_taken():
    def camera():
        for item in range(40):
            time.sleep(0.01)
            yield item

    def slow(item):
        time.sleep(0.1)
        return item

    with Pipeline(camera(), {"slow": slow}, ahead=1, live=True) as done:
        got = list(done)
    assert got == sorted(set(got))
    assert got[-1] == 39  # the last one waits, and is not lost
    assert done.dropped == 40 - len(got)
    assert done.dropped >= 20
