"""Place labels where they hide neither small instances nor each other.

H and W are rows and columns of a picture.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Maximum share of an instance's box that a label may cover.
_MOST_COVERED = 0.15


class LabelRoom:
    """Free space for labels in a picture."""

    def __init__(self, on_top: NDArray[np.uint8 | np.int32], areas: Sequence[float]):
        """Start without labels.

        Args:
            on_top: (H, W), number of the visible instance at each pixel, from 1; 0 for none.
            areas: box areas of instances 1, 2, ... in pixels; infinite if labels may hide them.
        """
        self._on_top = on_top
        self._most = np.array([np.inf, *(_MOST_COVERED * area for area in areas)])
        self._taken = np.zeros(on_top.shape, np.bool_)

    def take(
        self, box: NDArray[np.float32], sizes: Iterable[tuple[int, int]]
    ) -> tuple[int, int, int] | None:
        """Reserve a place above, in or below an instance for the first size that fits.

        A label fits if it is inside the picture, overlaps no other label, is not larger than its
        instance's box, and covers little of every instance.

        Args:
            box: box of the instance, XYXY in pixels.
            sizes: heights and widths of the label in order of preference.

        Returns:
            Index of the size, left and top of the label; None if no size fits.
        """
        rows, columns = self._on_top.shape
        left, top, right, bottom = box.tolist()
        for index, (height, width) in enumerate(sizes):
            x = max(0, min(int(left), columns - width))
            if height * width > (right - left) * (bottom - top) or width > columns:
                continue
            for y in (int(top) - height, int(top), int(bottom)):
                part = slice(y, y + height), slice(x, x + width)
                if 0 <= y <= rows - height and self._is_free(*part):
                    self._taken[part] = True
                    return index, x, y
        return None

    def _is_free(self, rows: slice, columns: slice) -> bool:
        if self._taken[rows, columns].any():
            return False
        covered = np.bincount(self._on_top[rows, columns].ravel(), minlength=len(self._most))
        return bool((covered <= self._most).all())
