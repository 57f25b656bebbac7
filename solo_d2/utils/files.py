"""Atomic writing of files."""

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

# Prefix of files that are being written; hidden, so that they are not mistaken for complete files.
UNFINISHED = ".unfinished-"
# Seconds after which such a file of another machine is considered abandoned.
_ABANDONED = 24 * 3600.0
# Errors of writing that are due to the disk or the location.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Write a file atomically, even if the process is killed or the power fails.

    The content is on the disk before the file gets its name. Files of killed writers start with
    `UNFINISHED`, and the next process that writes to the folder removes them (see `sweep`).

    Args:
        path: the file to write or replace; its folder is created if missing. Devices and pipes,
            such as /dev/stdout, are written directly.

    Yields:
        A temporary path with the same extension, in the same folder, which is renamed to `path`
        when the block ends.

    Raises:
        OSError: the file cannot be written; names `path` even if the block's error does not.
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
    """Write an indented json file atomically (see `whole_file`)."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file its final name, once its content is on the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def naming(path: Path | str, temporary: Path | str | None = None) -> Iterator[None]:
    """Make errors of writing a file or folder name `path`, or replace the name `temporary` by it.

    Errors of a full disk name no file, and torch raises a RuntimeError instead.

    Raises:
        OSError: with `path` as its file name; errors that name other files, and those of user code
            called in the block, are raised unchanged.
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
            raise  # about another file
        raise OSError(cause.errno, cause.strerror, os.fspath(path)) from error


def describe(error: OSError) -> str:
    """Describe a system error on one line: the file, the reason and a fix."""
    if error.errno is None:  # raised by this project, with a full message
        return str(error)
    reason = error.strerror or os.strerror(error.errno)
    text = f"{error.filename}: {reason}" if error.filename is not None else reason
    if error.errno in _NO_ROOM:
        return f"{text}. The file was not written: free some space, or choose another location"
    if error.errno in _NO_PLACE:
        return f"{text}. Choose another location, or change its permissions"
    return text


def unfinished(path: Path) -> Path:
    """Return a new temporary path in the folder of a file, which names the writing process."""
    name = f"{UNFINISHED}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    return path.parent / name


@functools.cache
def sweep(folder: Path) -> None:
    """Remove unfinished files of killed writers, once per folder and process.

    Files of processes on this machine are removed if the process has ended; files of other machines
    one day after their last modification.
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
    """Return an id of this boot of the machine or container, in which process ids are valid.

    "" if not on Linux.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{start}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    except OSError:
        return ""
