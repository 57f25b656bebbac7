"""Files written atomically."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from solo_d2.utils.user_code import calls_user_code

# How the names of files begin that are being written; hidden, so that nobody takes them for whole.
UNFINISHED = ".unfinished-"
# Seconds after which such a file of another machine is taken for one whose writer was killed.
_ABANDONED = 24 * 3600.0
# What writing raises where the disk or the place is the reason.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Write a file atomically, even if the process is killed or the power fails.

    The content is on the disk before the file gets its name. What a killed writer leaves begins
    with `UNFINISHED`, and is removed by the next process that writes to the folder (see `sweep`).

    Args:
        path: the file to write or replace; its folder is made where it is missing. A device or
            pipe, such as /dev/stdout, is written to as it is.

    Yields:
        A temporary name with the same extension, in the same folder; `path` when the block ends.

    Raises:
        OSError: it cannot be written; it names `path`, also where the block's error does not.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = unfinished(path)
    try:
        with naming(path, temporary):
            yield temporary
            put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_text(path: Path | str, text: str) -> None:
    """Write a text file, UTF-8, atomically (see `whole_file`)."""
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def save_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a json file to be read by people too, atomically (see `whole_file`)."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is written its name, once its content is on the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def naming(path: Path | str, temporary: Path | str | None = None) -> Iterator[None]:
    """Make errors of writing a file or folder name it, with `temporary` as its name until then.

    Those of a full disk name no file, and torch raises a RuntimeError instead.

    Raises:
        OSError: with `path` as its file name; errors that name other files, and those of the user's
            code that ours has called, stay as they are.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: Any = error if isinstance(error, OSError) else error.__cause__ or error.__context__
        if cause is not error and getattr(cause, "errno", None) not in _NO_ROOM:
            raise
        named = Path(str(cause.filename))
        ours = temporary is not None and Path(temporary) in (named, *named.parents)
        if cause.errno is None or not (cause.filename is None or ours):
            raise
        below = error.__traceback__
        while below is not None and below.tb_frame.f_code.co_filename == __file__:
            below = below.tb_next
        if calls_user_code(below):
            raise  # its file is another one
        raise OSError(cause.errno, cause.strerror, os.fspath(path)) from error


def describe(error: OSError) -> str:
    """Return an error of the system on one line: the file, the reason and what to do."""
    if error.errno is None:  # of our own, with all that
        return str(error)
    reason = error.strerror or os.strerror(error.errno)
    text = f"{error.filename}: {reason}" if error.filename is not None else reason
    if error.errno in _NO_ROOM:
        return f"{text}. It is not written; make room, or name another place"
    if error.errno in _NO_PLACE:
        return f"{text}. Name another place, or change its permissions"
    return text


def unfinished(path: Path) -> Path:
    """Return a new temporary name in the folder of a file; it names the process that writes."""
    name = f"{UNFINISHED}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    return path.parent / name


@functools.cache
def sweep(folder: Path) -> None:
    """Remove unfinished files of killed writers, once for each folder and process.

    On this machine it is known which have ended; files of other machines are removed a day after
    they were last written to.
    """
    for leftover in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # gone, or not ours to remove
            if _is_abandoned(leftover):
                leftover.unlink()


def _is_abandoned(leftover: Path) -> bool:
    machine, _, rest = leftover.name.removeprefix(UNFINISHED).partition("-")
    process = rest.partition("-")[0]
    if machine != _machine() or not machine or not process.isdecimal():
        return time.time() - leftover.stat().st_mtime > _ABANDONED
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return False


@functools.cache
def _machine() -> str:
    """Return a name of this machine since its start, or of this container; "" if not on Linux.

    Numbers of processes mean something within it alone.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{start}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    except OSError:
        return ""
