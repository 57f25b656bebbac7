"""Unreadable training images: replaced by other images, up to a limit.

Loader workers record them in the samples (`UNREADABLE`). They are counted when a batch is used, so
the count does not depend on the number of workers or on prefetching.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from solo_d2.utils.errors import DatasetError

logger = logging.getLogger("solo_d2")

# Key of a sample: reasons by file for the files that could not be read.
UNREADABLE = "unreadable"


class UnreadableImages:
    """The unreadable image files of a training run, each listed once."""

    def __init__(self, limit: int):
        """Tolerate up to `limit` files."""
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def take_new(self, batch: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Remove the records from a batch; return the reasons by file of new files."""
        found: dict[str, str] = {}
        for sample in batch:
            found |= sample.pop(UNREADABLE, {})
        return {file: reason for file, reason in found.items() if file not in self.reasons}

    def add(self, found: Mapping[str, str]) -> None:
        """Log and count files; raise DatasetError, listing all, above the limit."""
        for file, reason in found.items():
            if file not in self.reasons:
                self.reasons[file] = reason
                logger.warning(
                    f"{file} cannot be read: {reason}. Another image takes its place "
                    f"({len(self.reasons)} of at most {self.limit} such files)"
                )
        if len(self.reasons) > self.limit:
            raise too_many_unreadable(self.reasons, self.limit)


def too_many_unreadable(reasons: Mapping[str, str], limit: int) -> DatasetError:
    """Return the error for too many unreadable images, or for no image left to use."""
    count = "one image file" if len(reasons) == 1 else f"{len(reasons)} image files"
    why = f"and DATALOADER.MAX_UNREADABLE_IMAGES is {limit}"
    if len(reasons) <= limit:
        why = "and no other image is left to take their place"
    listed = "".join(f"\n  {file}: {reason}" for file, reason in reasons.items())
    return DatasetError(
        f"Training has come to {count} that cannot be read, {why}. Replace them, or take them out "
        f"of the data set (tools/check_dataset.py finds all such files):{listed}"
    )
