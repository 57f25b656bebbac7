"""Places for labels that hide neither small instances nor each other.

H and W are rows and columns of a picture.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# A label may cover at most this part of an instance's box.
_MOST_COVERED = 0.15


class LabelRoom:
    """Finds a place for one label after the other."""

    def __init__(self, on_top: NDArray[np.uint8 | np.int32], areas: Sequence[float]):
        """Take the instances of a picture.

        Args:
            on_top: (H, W), number of the instance that is seen at each pixel, from 1; 0 for none.
            areas: of the boxes of instances 1, 2, ... in pixels; infinite for what labels may hide.
        """
        self._on_top = on_top
        self._most = np.array([np.inf, *(_MOST_COVERED * area for area in areas)])
        self._taken = np.zeros(on_top.shape, np.bool_)

    def take(
        self, box: NDArray[np.float32], sizes: Iterable[tuple[int, int]]
    ) -> tuple[int, int, int] | None:
        """Take a place above, in or below an instance, for the first size that has one.

        Args:
            box: XYXY in pixels, of the instance.
            sizes: height and width of its label, the preferred one first.

        Returns:
            Index of the size, left and top of the label. None: there is no place where the label is
            in the picture, covers no other label, no more than its own box and only little of each
            instance.
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
