"""Folders written atomically, by one process at a time.

A writer fills a temporary sibling and renames it. It holds a lock file beside the folder, which the
system releases if the process dies; the next writer removes the leftovers of a dead one. Unlike
`whole_file`, this does not wait for the disk, which would take minutes for 100,000 images: files
may be empty after a power failure.
"""

import contextlib
import fcntl
import glob
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from solo_d2.utils.files import naming

logger = logging.getLogger(__name__)

# Folders in a temporary sibling: the new content, and the replaced one.
_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def lock_beside(root: Path) -> Iterator[bool]:
    """Hold the lock file beside `root`; yield False if the file system has no locks."""
    root.parent.mkdir(parents=True, exist_ok=True)
    path = root.parent / f".{root.name}.lock"
    with naming(root, path):
        file = open(path, "w")  # noqa: SIM115  (closed below)
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Waiting for another process that writes %s", root)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _remove_leftovers(root: Path) -> None:
    """Remove the leftovers of dead writers; restore a folder that was about to be replaced."""
    for path in root.parent.glob(f".{glob.escape(root.name)}.tmp-*"):
        if not root.exists() and (path / _OLD).exists():
            (path / _OLD).rename(root)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def sibling(root: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `root`, and remove it at the end."""
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.tmp-", dir=root.parent))
    try:
        yield work
    finally:
        try:
            shutil.rmtree(work, ignore_errors=True)
        except BaseException:  # interrupted
            shutil.rmtree(work, ignore_errors=True)
            raise


@contextlib.contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Hold the lock beside `root`, and remove the leftovers of dead writers."""
    with lock_beside(root) as locked:
        if locked:
            _remove_leftovers(root)
        yield


@contextlib.contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """Write a folder atomically, inside `only_writer`.

    Yields:
        An empty folder that replaces `root` at the end of the block; it is removed on an error.

    Raises:
        OSError: the folder cannot be written, or, without locks, another writer was first.
    """
    replace = root.exists()
    with sibling(root) as work, naming(root, work):
        new, old = work / _NEW, work / _OLD
        new.mkdir()
        yield new
        if replace:
            root.rename(old)
        try:
            new.rename(root)
        except OSError:
            if replace:
                old.rename(root)
            raise
