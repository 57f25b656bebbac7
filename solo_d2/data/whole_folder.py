"""Folders written atomically, by one process at a time.

A writer fills a temporary sibling and renames it, holding a lock file beside the folder that the
system frees when the process dies; the next writer removes what a dead one left. After a power cut
(unlike a kill) files of a folder that has just been written may be empty: unlike `whole_file` this
does not wait for the disk, as that would take minutes for 100,000 images.
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

# In a temporary sibling: what takes the folder's place, and what was there before.
_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def lock_beside(root: Path) -> Iterator[bool]:
    """Hold the lock file beside `root`; yields False where the file system knows no locks."""
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
    """Remove what dead writers left; a folder that one had not replaced yet comes back."""
    for path in root.parent.glob(f".{glob.escape(root.name)}.tmp-*"):
        if not root.exists() and (path / _OLD).exists():
            (path / _OLD).rename(root)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def sibling(root: Path) -> Iterator[Path]:
    """A temporary folder beside `root`, removed at the end with all that is left in it."""
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.tmp-", dir=root.parent))
    try:
        yield work
    finally:
        try:
            shutil.rmtree(work, ignore_errors=True)
        except BaseException:  # Ctrl-C or SIGTERM in the midst of it
            shutil.rmtree(work, ignore_errors=True)
            raise


@contextlib.contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Hold the lock beside `root`, with what dead writers have left removed."""
    with lock_beside(root) as locked:
        if locked:
            _remove_leftovers(root)
        yield


@contextlib.contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """Write a folder atomically; for the `only_writer`.

    Yields:
        An empty folder that takes the place of `root`, with all that is in there, when the block
        ends, and is removed when the block raises.

    Raises:
        OSError: it cannot be written, or another writer was first, as is possible without locks.
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
