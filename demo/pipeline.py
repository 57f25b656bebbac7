"""Concurrent stages, each in a thread; items pass through them in order."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Weight of the newest time in the moving averages.
_NEWEST = 0.1
# Seconds between checks of a waiting thread for the stop event, and to join a thread.
_LOOK, _PATIENCE = 0.1, 5.0
_END = object()


@dataclass
class _Failure:
    """An error to raise in the consumer."""

    error: BaseException


class Pipeline:
    """Read items and pass them through stages in threads, ahead of the consumer.

    Use it in a `with` block and iterate over it once. An error of the source or of a stage is
    raised there, after the items before it. Leaving the block ends all threads.

    Attributes:
        seconds: moving average of each stage's time per item, by name; "read" is the source.
        dropped: number of skipped items of a live source.
    """

    def __init__(
        self,
        source: Iterable[Any],
        stages: Mapping[str, Callable[[Any], Any]],
        *,
        ahead: int = 2,
        live: bool = False,
    ):
        """Create the threads; they start with the `with` block.

        Args:
            source: iterable of items.
            stages: name -> function from item to item, in order.
            ahead: maximum number of items that wait between two stages.
            live: keep only the newest of the items that wait to be taken from the source.
        """
        self.seconds = dict.fromkeys(["read", *stages], 0.0)
        self.dropped = 0
        self._stop = threading.Event()
        self._threads = []
        self._items: Iterator[Any] = iter(source)
        works = {"read": None, **stages}
        for name, work in works.items():
            newest = live and work is None
            target: queue.Queue[Any] = queue.Queue(1 if newest else ahead)
            arguments = (name, self._items, work, target, newest)
            self._threads.append(
                threading.Thread(target=self._run, args=arguments, name=f"demo-{name}", daemon=True)
            )
            self._items = self._take(target)

    def __enter__(self) -> "Pipeline":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE)  # a blocked camera must not prevent the exit

    def __iter__(self) -> Iterator[Any]:
        return self._items

    def _take(self, source: "queue.Queue[Any]") -> Iterator[Any]:
        """Yield the items of a queue; raise the error in it."""
        while not self._stop.is_set():
            try:
                item = source.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def _run(
        self,
        name: str,
        items: Iterator[Any],
        work: Callable[[Any], Any] | None,
        target: "queue.Queue[Any]",
        newest: bool,
    ) -> None:
        """Process items in a thread; `newest` replaces an item that still waits."""
        try:
            started = time.perf_counter()  # the first stage reads the items
            for item in items:
                if work is not None:
                    started = time.perf_counter()
                    item = work(item)
                self._note(name, started)
                if newest and target.full():
                    with contextlib.suppress(queue.Empty):  # it has just been taken
                        target.get_nowait()
                        self.dropped += 1
                self._put(target, item)
                if self._stop.is_set():
                    return
                started = time.perf_counter()
            self._put(target, _END)
        except Exception as error:  # passed on to the consumer
            self._put(target, _Failure(error))

    def _note(self, name: str, started: float) -> None:
        passed, before = time.perf_counter() - started, self.seconds[name]
        self.seconds[name] = before + _NEWEST * (passed - before) if before else passed

    def _put(self, target: "queue.Queue[Any]", item: Any) -> None:
        while not self._stop.is_set():
            try:
                return target.put(item, timeout=_LOOK)
            except queue.Full:
                continue
