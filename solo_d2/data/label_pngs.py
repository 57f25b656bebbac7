"""Open PNGs of labels: stuff maps, segment ids and instance ids. Does not import Detectron2."""

import contextlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from solo_d2.utils.errors import DatasetError

# Raised by Pillow for damaged files; SyntaxError for a broken PNG.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


@contextlib.contextmanager
def opened_labels(
    file: str | Path, modes: Sequence[str] = (), title: str = ""
) -> Iterator[Image.Image]:
    """Open a PNG of labels.

    Args:
        file: path of the PNG.
        modes: Pillow's modes that are allowed; empty for all.
        title: describes the file in error messages, by default its path.

    Raises:
        DatasetError: the file is missing, damaged or of another mode, also if the block finds out.
    """
    title = title or str(file)
    try:
        with Image.open(file) as image:
            if modes and image.mode not in modes:
                raise DatasetError(
                    f"{title} has the mode {image.mode!r} of Pillow, but must have one of "
                    f"{', '.join(modes)}"
                )
            yield image
    except FileNotFoundError:
        raise DatasetError(f"{title} is missing") from None
    except _DAMAGE as error:
        raise DatasetError(f"{title} cannot be read: {type(error).__name__}: {error}") from error


def require_size(file: str | Path, size: Sequence[int], record: dict[str, Any]) -> None:
    """Raise DatasetError unless `size`, (H, W) of a file, is that of a record of its image."""
    if tuple(size) != (record["height"], record["width"]):
        raise DatasetError(
            f"{file} has {size[0]} x {size[1]} pixels (height x width), but the data set says "
            f"{record['height']} x {record['width']}"
        )
