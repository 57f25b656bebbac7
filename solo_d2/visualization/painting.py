"""Blend masks into pictures with NumPy and OpenCV alone, also for exported models.

H and W are rows and columns of a picture.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2.visualization.colors import Color

# Opacity of masks.
_OPACITY = 0.5
# Outlines are two pixels wide from this shorter side on.
_LARGE = 700


def paint(
    picture: NDArray[np.uint8],
    on_top: NDArray[np.uint8 | np.int32],
    colors: Sequence[Color],
    *,
    filled: bool,
) -> None:
    """Blend masks into a picture, in place, and draw their outlines.

    Args:
        picture: (H, W, 3) uint8.
        on_top: (H, W), number of the mask that is seen at each pixel, from 1; 0 for none.
        colors: of the masks by their number, in [0, 1], in the picture's channel order.
        filled: blend, then draw outlines; else masks are lines, drawn in their colour.
    """
    palette = np.zeros((len(colors) + 1, 3), np.uint8)
    palette[1:] = np.rint(np.array(colors).reshape(-1, 3) * 255)
    colored = palette.take(on_top, axis=0)
    lines = inside = (on_top > 0).view(np.uint8)
    if filled:
        blended = cv2.addWeighted(picture, 1 - _OPACITY, colored, _OPACITY, 0)
        cv2.copyTo(blended, inside, picture)
        lines = _outlines(on_top, 2 if min(on_top.shape) >= _LARGE else 1)
    cv2.copyTo(colored, lines, picture)


def _outlines(on_top: NDArray[np.uint8 | np.int32], width: int) -> NDArray[np.uint8]:
    """Return (H, W) uint8, 1 at mask pixels near the border of the visible part."""
    # OpenCV's morphology does not support int32; float32 is exact for these values.
    values = on_top if on_top.dtype == np.uint8 else on_top.astype(np.float32)
    around = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return ((cv2.morphologyEx(values, cv2.MORPH_GRADIENT, around) > 0) & (on_top > 0)).view(
        np.uint8
    )
