"""What all commands share: types of arguments, errors on one line, a clean end after SIGTERM."""

import argparse
import atexit
import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from solo_d2.utils.errors import BadNumbersError, ConfigError, DatasetError
from solo_d2.utils.files import describe
from solo_d2.utils.user_code import from_user_code

# Exit codes: of an error, of Ctrl-C and of SIGTERM (128 and the number of the signal).
FAILED, INTERRUPTED, TERMINATED = 2, 130, 143
# Seconds in which one SIGTERM counts.
_SOON = 10.0
# Seconds that a process has to end after SIGTERM.
_PATIENCE = 5.0
Errors = tuple[type[Exception], ...]
# Printed on one line wherever they come from.
_OWN: Errors = (BadNumbersError, ConfigError, DatasetError)


def share_cores() -> None:
    """Let OpenMP's threads sleep while they wait for one another, unless the user has decided.

    By default they spin, which costs milliseconds in each operation while other programs use the
    cores. The variable is read when torch is imported, and by programs that are started.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


class Terminated(SystemExit):
    """SIGTERM has come, as SLURM, Kubernetes and `timeout` send it before they kill.

    Not an Exception, so that nothing takes it for a failure.
    """

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def probability(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def run_command(
    name: str, work: Callable[[], object], *, errors: Errors = (), failed: int = FAILED
) -> int:
    """Run a command; print the errors that a user can mend on one line.

    Args:
        name: of the command, which begins its messages; "": the type of the error does.
        work: may return an exit code; anything but a number is taken for 0.
        errors: types to print on one line, besides those of `solo_d2.utils.errors` and OSError.
            These and OSError are raised where code of the user is involved, like all other errors.
        failed: exit code of such errors.

    Returns:
        The exit code; `INTERRUPTED` after Ctrl-C and `TERMINATED` after SIGTERM.
    """
    mendable: Errors = (*_OWN, OSError, *errors)
    with _sigterm_raises() as stopped, _quiet_logging(mendable):
        try:
            try:
                result = work()
            except Exception as error:
                if stopped():  # also of workers and other processes, whose end raises errors here
                    raise Terminated from error
                raise
            return result if isinstance(result, int) else 0
        except mendable as error:
            if not _is_mendable(error, mendable):
                raise
            text = describe(error) if isinstance(error, OSError) else str(error)
            print(f"{name or type(error).__name__}: {text}", file=sys.stderr)
            atexit.register(_close_logs)
            return failed
        except KeyboardInterrupt:
            print(f"{name or 'Ctrl-C'}: interrupted", file=sys.stderr)
            return INTERRUPTED
        except Terminated:
            for process in multiprocessing.active_children():
                process.terminate()  # Python drops a signal to a process that was just forked
                process.join(_PATIENCE)
                if process.is_alive():
                    process.kill()
            print(f"{name or 'SIGTERM'}: terminated", file=sys.stderr)
            return TERMINATED


def _is_mendable(error: BaseException | None, mendable: Errors) -> bool:
    """Whether an error is printed on one line, without its traceback."""
    return isinstance(error, _OWN) or (isinstance(error, mendable) and not from_user_code(error))


def cause_of_end(exit_code: int) -> str:
    """Say how a process ended, for messages: "with exit code 3" or "by SIGTERM".

    Args:
        exit_code: as `subprocess` and `multiprocessing` give it, or that of `run_command`.
    """
    number = {INTERRUPTED: signal.SIGINT, TERMINATED: signal.SIGTERM}.get(exit_code, -exit_code)
    if number <= 0:
        return f"with exit code {exit_code}"
    if number == signal.SIGKILL:
        return "by SIGKILL (mostly because memory ran out)"
    names = {int(known): known.name for known in signal.Signals}
    return f"by {names.get(number, f'signal {number}')}"  # real-time signals have no names


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[Callable[[], bool]]:
    """Raise `Terminated` in the main thread on SIGTERM, and end started processes too.

    Signals soon after the first do nothing, as a job's manager and what started the job may both
    send one. Yields a function that returns whether the signal has come.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are not for others
        yield lambda: False
        return

    owner, heard = os.getpid(), -math.inf

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # just forked, and not to go on with what its parent was at
            os._exit(TERMINATED)
        nonlocal heard
        if time.monotonic() - heard < _SOON:
            return
        heard = time.monotonic()
        for process in multiprocessing.active_children():
            if not process.daemon:  # those end with this one, as workers of loaders
                process.terminate()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield lambda: heard > -math.inf
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_logs() -> None:
    """Close log files, which may be on a full disk, before Detectron2 reports that at exit."""
    for handler in _log_files():
        with contextlib.suppress(OSError, ValueError):
            handler.stream.close()


def shorten_log_errors() -> None:
    """Report a log file that cannot be written once, not by a traceback for each record."""
    for handler in _log_files():
        handler.handleError = partial(_report_once, handler)  # type: ignore[method-assign]


def _report_once(handler: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):  # a call that logs is wrong
        type(handler).handleError(handler, record)
    elif not hasattr(handler, "reported"):
        handler.reported = True  # type: ignore[attr-defined]
        named = OSError(error.errno, error.strerror, handler.stream.name)
        print(describe(named), file=sys.stderr)


def _log_files() -> "Iterator[logging.StreamHandler[Any]]":
    """The open log files of Detectron2 and of this project."""
    for name in ("detectron2", "fvcore", "solo_d2"):
        for handler in logging.getLogger(name).handlers:
            of_console = getattr(handler, "stream", None) in (None, sys.stdout, sys.stderr)
            if isinstance(handler, logging.StreamHandler) and not of_console:
                yield handler


@contextlib.contextmanager
def _quiet_logging(mendable: Errors) -> Iterator[None]:
    """Keep tracebacks of errors that are printed on one line out of Detectron2's log."""

    def is_news(record: logging.LogRecord) -> bool:
        return not (record.exc_info and _is_mendable(record.exc_info[1], mendable))

    loop = logging.getLogger("detectron2.engine.train_loop")  # it logs what training raises
    loop.addFilter(is_news)
    try:
        yield
    finally:
        loop.removeFilter(is_news)
