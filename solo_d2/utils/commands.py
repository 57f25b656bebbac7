"""Shared by all commands: argument types, one-line errors, clean exit on SIGTERM."""

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

# Exit codes for errors, Ctrl-C and SIGTERM (128 + number of the signal).
FAILED, INTERRUPTED, TERMINATED = 2, 130, 143
# Seconds in which further SIGTERMs are ignored.
_SOON = 10.0
# Seconds until a process is killed after SIGTERM.
_PATIENCE = 5.0
Errors = tuple[type[Exception], ...]
# Errors that are always printed on one line.
_OWN: Errors = (BadNumbersError, ConfigError, DatasetError)


def share_cores() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has set their policy.

    Spinning costs milliseconds per operation while other programs use the cores. The variable is
    read when torch is imported, and by child processes.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


class Terminated(SystemExit):
    """Raised on SIGTERM, which SLURM, Kubernetes and `timeout` send before they kill.

    Not an Exception, so that it is not handled as a failure.
    """

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def probability(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def run_command(
    name: str, work: Callable[[], object], *, errors: Errors = (), failed: int = FAILED
) -> int:
    """Run a command and print errors that users can fix on one line.

    Args:
        name: name of the command, to prefix messages; "": the type of the error.
        work: the command; may return an exit code, otherwise 0.
        errors: types to print on one line, besides those of `solo_d2.utils.errors` and OSError.
            These and OSError are raised, like all other errors, if user code is involved.
        failed: exit code for errors printed on one line.

    Returns:
        The exit code; `INTERRUPTED` after Ctrl-C and `TERMINATED` after SIGTERM.
    """
    mendable: Errors = (*_OWN, OSError, *errors)
    with _sigterm_raises() as stopped, _quiet_logging(mendable):
        try:
            try:
                result = work()
            except Exception as error:
                if stopped():  # the end of workers and other processes raises errors here
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
    """Return whether an error is printed on one line, without its traceback."""
    return isinstance(error, _OWN) or (isinstance(error, mendable) and not from_user_code(error))


def cause_of_end(exit_code: int) -> str:
    """Describe the end of a process: "with exit code 3" or "by SIGTERM".

    Args:
        exit_code: exit code of `subprocess`, `multiprocessing` or `run_command`.
    """
    number = {INTERRUPTED: signal.SIGINT, TERMINATED: signal.SIGTERM}.get(exit_code, -exit_code)
    if number <= 0:
        return f"with exit code {exit_code}"
    if number == signal.SIGKILL:
        return "by SIGKILL (usually out of memory)"
    names = {int(known): known.name for known in signal.Signals}
    return f"by {names.get(number, f'signal {number}')}"  # real-time signals have no names


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[Callable[[], bool]]:
    """Raise `Terminated` in the main thread on SIGTERM, and terminate child processes.

    Further signals are ignored for a while, since a job's manager and its launcher may both send
    one. Yields a function that returns whether the signal was received.
    """
    if threading.current_thread() is not threading.main_thread():  # only it receives signals
        yield lambda: False
        return

    owner, heard = os.getpid(), -math.inf

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # just forked: it must not continue its parent's work
            os._exit(TERMINATED)
        nonlocal heard
        if time.monotonic() - heard < _SOON:
            return
        heard = time.monotonic()
        for process in multiprocessing.active_children():
            if not process.daemon:  # daemons, such as workers of loaders, end with this process
                process.terminate()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield lambda: heard > -math.inf
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_logs() -> None:
    """Close log files before Detectron2 does at exit, where a full disk would cause errors."""
    for handler in _log_files():
        with contextlib.suppress(OSError, ValueError):
            handler.stream.close()


def shorten_log_errors() -> None:
    """Report an unwritable log file once, instead of a traceback for each record."""
    for handler in _log_files():
        handler.handleError = partial(_report_once, handler)  # type: ignore[method-assign]


def _report_once(handler: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):  # a wrong logging call
        type(handler).handleError(handler, record)
    elif not hasattr(handler, "reported"):
        handler.reported = True  # type: ignore[attr-defined]
        named = OSError(error.errno, error.strerror, handler.stream.name)
        print(describe(named), file=sys.stderr)


def _log_files() -> "Iterator[logging.StreamHandler[Any]]":
    """Yield the handlers of open log files of Detectron2 and this project."""
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

    loop = logging.getLogger("detectron2.engine.train_loop")  # logs errors of training
    loop.addFilter(is_news)
    try:
        yield
    finally:
        loop.removeFilter(is_news)
