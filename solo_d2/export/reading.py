"""Reading image files for exported models, with NumPy and OpenCV only.

For ordinary files, sizes, orientations and pixels are those of `solo_d2.utils.images`, which needs
Pillow. Differences of OpenCV for other files:

- CMYK is converted by another formula (a difference of one level on average); 16-bit images are
  always divided by 256; float images are rejected.
- Damaged JPEG data gives wrong pixels without an error.
- The limit of pixels is checked before decoding for PNG and JPEG. For other formats the limit of
  OpenCV applies, 2^30 (OPENCV_IO_MAX_IMAGE_PIXELS in the environment lowers it).
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

# As in solo_d2/utils/images.py.
MAX_PIXELS = 80_000_000

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# The markers before and after the coded pixels of a JPEG, and those of headers with its size (all
# types of frames, without other markers in that range).
_SCAN, _END = 0xDA, b"\xff\xd9"
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file upright, (H, W, 3) uint8 BGR.

    Raises:
        ValueError: the file is missing, truncated, too large, or no image that OpenCV knows.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    try:
        _check_header(content.tobytes())
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (cv2.error, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: OpenCV cannot read it: {reason}") from error
    if image is None:
        raise ValueError(f"{path}: no image that OpenCV can read")
    return image.astype(np.uint8, copy=False)


def _check_header(content: bytes) -> None:
    """Reject large PNGs and JPEGs, and truncated JPEGs, which OpenCV 4 decodes in part."""
    if content.startswith(_PNG):
        _check_size(content[16:20], content[20:24])
    if not content.startswith(_JPEG):
        return
    place = len(_JPEG)
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == _SCAN:
            break
        if marker in _FRAMES:
            _check_size(content[place + 7 : place + 9], content[place + 5 : place + 7])
        # Bytes of 255 may be padding; all other markers here have the length of their segment.
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        place += 1 if marker == 0xFF else 2 + length
    # This sequence does not occur in coded pixels.
    if content.find(_END, place) < 0:
        raise ValueError("truncated: the JPEG has no end")


def _check_size(width: bytes, height: bytes) -> None:
    pixels = int.from_bytes(width, "big") * int.from_bytes(height, "big")
    if pixels > MAX_PIXELS:
        raise ValueError(f"{pixels} pixels, more than the limit of {MAX_PIXELS}")
