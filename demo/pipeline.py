"""Stages that work at the same time, each in a thread, on items that pass through them in order."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

# Weight of the newest time in the moving averages.
_NEWEST = 0.1
# Seconds after which a waiting thread looks whether it shall end; and that it is given to end.
_LOOK, _PATIENCE = 0.1, 5.0
_END = object()


class _Failure:
    """An error on its way to who takes the items."""

    def __init__(self, error: BaseException):
        self.error = error


class Pipeline:
    """Reads items and passes them through stages, ahead of who takes them.

    Use it in a `with` block and iterate over it once. An error of the source or of a stage is
    raised there, after the items before it. Leaving the block ends all threads.

    Attributes:
        seconds: moving average of the time that each stage takes for an item, by name; "read" is
            the source.
        dropped: items of a live source that nobody had time for.
    """

    def __init__(
        self,
        source: Iterable[Any],
        stages: Mapping[str, Callable[[Any], Any]],
        *,
        ahead: int = 2,
        live: bool = False,
    ):
        """Prepare the threads; they start with the `with` block.

        Args:
            source: of the items.
            stages: name -> function from item to item, in order.
            ahead: most items that wait between two stages.
            live: of the items that wait to be taken from the source only the newest is kept.
        """
        self.source, self.stages, self.live = source, dict(stages), live
        self.seconds = dict.fromkeys(["read", *stages], 0.0)
        self.dropped = 0
        sizes = [1 if live else ahead, *[ahead] * len(stages)]
        self._queues: list[queue.Queue[Any]] = [queue.Queue(size) for size in sizes]
        self._stop = threading.Event()
        jobs: list[tuple[str, Callable[[], None]]] = [("read", self._read)]
        jobs += [(name, self._worker(i, name)) for i, name in enumerate(stages)]
        self._threads = [
            threading.Thread(target=job, name=f"demo-{name}", daemon=True) for name, job in jobs
        ]

    def __enter__(self) -> "Pipeline":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE)  # a camera that hangs must not keep the program

    def __iter__(self) -> Iterator[Any]:
        while (item := self._get(self._queues[-1])) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def _read(self) -> None:
        items = iter(self.source)
        item: Any = None
        while item is not _END and not isinstance(item, _Failure):
            started = time.perf_counter()
            try:
                item = next(items, _END)
            except Exception as error:  # raised again by `__iter__`
                item = _Failure(error)
            if item is not _END:
                self._note("read", started)
            if not self._put_read(item):
                return

    def _put_read(self, item: Any) -> bool:
        first = self._queues[0]
        if self.live and item is not _END and not isinstance(item, _Failure):
            try:
                first.put_nowait(item)
                return not self._stop.is_set()
            except queue.Full:
                self._drop(first)
        return self._put(first, item)

    def _drop(self, waiting: "queue.Queue[Any]") -> None:
        try:
            waiting.get_nowait()
            self.dropped += 1
        except queue.Empty:  # it has just been taken
            pass

    def _worker(self, index: int, name: str) -> Callable[[], None]:
        def work() -> None:
            item: Any = None
            while item is not _END and not isinstance(item, _Failure):
                item = self._get(self._queues[index])
                if item is not _END and not isinstance(item, _Failure):
                    started = time.perf_counter()
                    try:
                        item = self.stages[name](item)
                    except Exception as error:  # raised again by `__iter__`
                        item = _Failure(error)
                    self._note(name, started)
                if not self._put(self._queues[index + 1], item):
                    return

        return work

    def _note(self, name: str, started: float) -> None:
        passed, before = time.perf_counter() - started, self.seconds[name]
        self.seconds[name] = before + _NEWEST * (passed - before) if before else passed

    def _put(self, target: "queue.Queue[Any]", item: Any) -> bool:
        """Whether the item could be put before all was to end."""
        while not self._stop.is_set():
            try:
                target.put(item, timeout=_LOOK)
                return True
            except queue.Full:
                continue
        return False

    def _get(self, source: "queue.Queue[Any]") -> Any:
        while not self._stop.is_set():
            try:
                return source.get(timeout=_LOOK)
            except queue.Empty:
                continue
        return _END
