"""Image files that training cannot read: others take their place, up to a limit.

The loader's workers note them in the samples (`UNREADABLE`); they are counted where the samples are
used, so that the number does not depend on the workers or on what they have read ahead.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from solo_d2.utils.errors import DatasetError

logger = logging.getLogger("solo_d2")

# Key of a sample: the files that could not be read on the way to it, with reasons.
UNREADABLE = "unreadable"


class UnreadableImages:
    """The image files that a training has come to and could not read, each once."""

    def __init__(self, limit: int):
        """Start without any; up to `limit` are tolerated."""
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def take_new(self, batch: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Take the notes out of a batch; reasons by file, of the files that are not known yet."""
        found: dict[str, str] = {}
        for sample in batch:
            found |= sample.pop(UNREADABLE, {})
        return {file: reason for file, reason in found.items() if file not in self.reasons}

    def add(self, found: Mapping[str, str]) -> None:
        """Log and count files; DatasetError, listing all, if there are more than the limit."""
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
    """The error for more unreadable images than are tolerated, or than there are others."""
    count = "one image file" if len(reasons) == 1 else f"{len(reasons)} image files"
    why = f"and DATALOADER.MAX_UNREADABLE_IMAGES is {limit}"
    if len(reasons) <= limit:
        why = "and no other image is left to take their place"
    listed = "".join(f"\n  {file}: {reason}" for file, reason in reasons.items())
    return DatasetError(
        f"Training has come to {count} that cannot be read, {why}. Replace them, or take them out "
        f"of the data set (tools/check_dataset.py finds all such files):{listed}"
    )
