"""Lock of an OUTPUT_DIR, so that only one training runs there at a time.

The main process of a training locks a file in the folder that names its machine and process. The
system releases the lock when the process ends, for any reason.
"""

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from detectron2.utils import comm

from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import naming

logger = logging.getLogger("solo_d2")

LOCK = ".training.lock"
# Folders that this process has reserved, with the descriptors of their locks.
_held: dict[Path, int] = {}
# Seconds to wait until the holder of a lock has written its name.
_NAMED = 0.2


def _forget() -> None:
    """Close the locks in a forked worker, which may outlive its parent."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def reserve(folder: str | Path) -> None:
    """Lock OUTPUT_DIR until `release`, or until this process ends.

    Called by all processes of a job; repeated calls are allowed. URLs (s3://...) are not locked; a
    file system without locks causes a warning.

    Raises:
        ConfigError: another process trains there; raised in all processes of the job.
        OSError: the folder is not writable.
    """
    holder = _lock(Path(folder)) if comm.is_main_process() and "://" not in str(folder) else ""
    holder = comm.all_gather(holder)[0]
    if holder:
        raise ConfigError(
            f"OUTPUT_DIR {folder} is in use: {holder} trains there. Wait until it ends, or set "
            "another OUTPUT_DIR"
        )


def release(folder: str | Path) -> None:
    """Unlock a folder, if this process has locked it."""
    descriptor = _held.pop(Path(folder).resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def holds_training(folder: str | Path) -> bool:
    """Return whether a training runs, or has run, in a folder."""
    return Path(folder, LOCK).exists()


def _lock(folder: Path) -> str:
    """Lock a folder; return the holder if another process has locked it, else ""."""
    folder = folder.resolve()
    if folder in _held:
        return ""
    with naming(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_NAMED)
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                return holder or "another process"
            except OSError as error:
                logger.warning(
                    f"{folder} cannot be locked ({error.strerror}): a second training there would "
                    "not be detected"
                )
            name = f"process {os.getpid()} on {socket.gethostname()}\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, name.encode(), 0)
            _held[folder] = descriptor
            return ""
        finally:
            if folder not in _held:
                os.close(descriptor)
