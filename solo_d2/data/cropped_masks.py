"""Instance masks cropped to their boxes, to send training samples between processes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes
from numpy.typing import NDArray
from torch import Tensor

from solo_d2.ops.mask_crops import EMPTY, MaskCrops, Window


class CroppedMasks(MaskCrops, BitMasks):
    """Bitmasks that are cropped to their tight boxes until `tensor` is first read.

    Has Detectron2's interface and needs a fraction of the memory, because most objects cover a few
    percent of the image. `to`, `pin_memory`, indexing, `nonempty`, `get_bounding_boxes`, copying
    and pickling keep the masks cropped. Reading `tensor` uncrops them permanently, so that it can
    be modified in place.
    """

    def __init__(self, pixels: Tensor, windows: Sequence[Window], image_size: Sequence[int]):
        """Take the masks of an image; see `crop_masks` and `crop_tensor`.

        Args:
            pixels: (P,) bool, the concatenated pixels of all windows, row by row.
            windows: window of each mask, empty for a mask without pixels.
            image_size: height and width of the image.
        """
        MaskCrops.__init__(self, pixels, windows, image_size)
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """(N, H, W) bool, on the device of the cropped masks."""
        masks = self._tensor
        if masks is None:
            masks = self.tensor = self.whole()
        return masks

    @tensor.setter
    def tensor(self, masks: Tensor) -> None:
        self._tensor, self.pixels, self.windows = masks, masks.new_zeros(0), []

    @property
    def device(self) -> torch.device:
        """The device of the masks."""
        return (self.pixels if self._tensor is None else self._tensor).device

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """Move the masks as `Tensor.to` does."""
        if self._tensor is not None:
            return BitMasks(self._tensor.to(*args, **kwargs))
        moved: CroppedMasks = super().to(*args, **kwargs)
        return moved

    def pin_memory(self) -> BitMasks:
        """Copy the masks to pinned memory."""
        if self._tensor is not None:
            return BitMasks(self._tensor.pin_memory())
        return CroppedMasks(self.pixels.pin_memory(), self.windows, self.image_size)

    def __getitem__(self, item: Any) -> BitMasks:
        """Select masks by an index, a slice, or a tensor of indices or booleans."""
        if self._tensor is not None:
            return BitMasks(self._tensor)[item]
        chosen: CroppedMasks = super().__getitem__(item)
        return chosen

    def __len__(self) -> int:
        return len(self.windows if self._tensor is None else self._tensor)

    def nonempty(self) -> Tensor:
        """Return whether each mask has pixels, (N,) bool."""
        if self._tensor is not None:
            return BitMasks.nonempty(self)
        flags = [window != EMPTY for window in self.windows]
        return torch.tensor(flags, dtype=torch.bool, device=self.device)

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes, on the CPU; zeros for a mask without pixels."""
        if self._tensor is not None:
            return BitMasks.get_bounding_boxes(self)
        return Boxes(self.boxes())

    def clip(self, window: Window) -> "CroppedMasks":
        """Return masks on the CPU, still cropped, without their pixels outside a window."""
        left, top, right, bottom = window
        parts = []
        for (own_left, own_top, *_), crop in zip(self.windows, self.parts(), strict=True):
            x, y = max(left, own_left), max(top, own_top)
            rows = slice(y - own_top, max(bottom - own_top, 0))
            columns = slice(x - own_left, max(right - own_left, 0))
            parts.append((x, y, crop.numpy()[rows, columns]))
        return crop_masks(parts, self.image_size)

    @staticmethod
    def cat(bitmasks_list: list[BitMasks]) -> BitMasks:
        """Concatenate bitmasks of either kind; they are uncropped."""
        return BitMasks.cat([BitMasks(masks.tensor) for masks in bitmasks_list])


def crop_masks(
    parts: Iterable[tuple[int, int, NDArray[np.bool_]]], image_size: Sequence[int]
) -> CroppedMasks:
    """Crop masks to their tight boxes.

    Args:
        parts: column and row of the upper left corner of each part, and its (h, w) pixels, inside
            the image; all other pixels are background.
        image_size: height and width of the image.
    """
    windows, pixels = [], [np.zeros(0, np.bool_)]
    for left, top, part in parts:
        columns, rows = (np.flatnonzero(part.any(axis=axis)) for axis in (0, 1))
        if not len(rows):
            windows.append(EMPTY)
            continue
        x, y, right, bottom = (int(i) for i in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        windows.append((left + x, top + y, left + right, top + bottom))
        pixels.append(part[y:bottom, x:right].reshape(-1))
    return CroppedMasks(torch.from_numpy(np.concatenate(pixels)), windows, image_size)


def crop_tensor(masks: Tensor) -> CroppedMasks:
    """Crop masks (N, H, W) bool on the CPU to their tight boxes."""
    return crop_masks(((0, 0, mask) for mask in masks.numpy()), masks.shape[1:])
