"""Folders written whole or not at all, by one process at a time.

A writer fills a temporary sibling and renames it, holding a lock file beside the folder that the
system frees when the process dies; the next writer removes what a dead one left.
"""

import contextlib
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_beside(root: Path) -> Iterator[bool]:
    """Hold the lock file beside `root`, whose parent folder is made where it is missing.

    Yields:
        False where the file system knows no locks: two writers may then work side by side.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.parent / f".{root.name}.lock", "w") as file:
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


def remove_leftovers(root: Path) -> None:
    """Remove what writers left that died. Only with the lock: then no writer is alive."""
    for path in root.parent.glob(f".{root.name}.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def sibling(root: Path) -> Iterator[Path]:
    """A temporary folder beside `root`, removed at the end with all that is left in it."""
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.tmp-", dir=root.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """Write a folder whole or not at all; the parent folder is made where it is missing.

    Yields:
        An empty folder that takes the place of `root`, with all that is in there, when the block
        ends, and is removed when the block raises.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with sibling(root) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        replace = root.exists()
        if replace:
            root.rename(old)
        try:
            new.rename(root)
        except OSError:
            if replace:
                old.rename(root)
            raise
