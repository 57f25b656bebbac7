"""Binary masks stored in their boxes alone: many objects of a large image in little memory.

Shape letters: N masks, H and W rows and columns, P pixels of all boxes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.mask_geometry import mask_boxes

# Left, top, right and bottom of a mask in pixels, right and bottom exclusive.
Window = tuple[int, int, int, int]
EMPTY: Window = (0, 0, 0, 0)


class MaskCrops:
    """The masks of an image, each cropped to its tight box.

    It is a field of Detectron2's `Instances` in the place of a tensor (N, H, W): it has a length,
    is moved by `to`, and selected from.

    Attributes:
        pixels: (P,) bool, the pixels of all windows, one mask after the other, row by row.
        windows: the box of each mask; `EMPTY` for a mask without pixels.
        image_size: H and W.
    """

    def __init__(self, pixels: Tensor, windows: Sequence[Window], image_size: Sequence[int]):
        """Take the masks; see `crops_of`."""
        self.pixels, self.windows = pixels, list(windows)
        self.image_size = torch.Size(image_size)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H and W."""
        return len(self), self.image_size[0], self.image_size[1]

    @property
    def device(self) -> torch.device:
        """The device of the masks."""
        return self.pixels.device

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the masks as `Tensor.to` does."""
        pixels = self.pixels.to(*args, **kwargs).to(torch.bool)
        return type(self)(pixels, self.windows, self.image_size)

    def parts(self) -> list[Tensor]:
        """Return a view of the pixels (h, w) of each window."""
        sizes = [(bottom - top, right - left) for left, top, right, bottom in self.windows]
        parts = self.pixels.split([height * width for height, width in sizes])
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)]

    def __getitem__(self, item: Any) -> Any:
        """Select masks by a number, a slice, or a tensor of numbers or flags."""
        item = item.cpu() if isinstance(item, Tensor) else item
        chosen = torch.arange(len(self))[item].reshape(-1).tolist()
        parts = self.parts()
        pixels = torch.cat([self.pixels[:0], *(parts[index].reshape(-1) for index in chosen)])
        return type(self)(pixels, [self.windows[index] for index in chosen], self.image_size)

    def whole(self, step: int = 1) -> Tensor:
        """Return (N, H, W) bool, or of every `step`-th row and column alone."""
        sides = (-(-side // step) for side in self.image_size)
        masks = torch.zeros(len(self), *sides, dtype=torch.bool, device=self.device)
        # A loop, but without waits for the device: it copies as few bytes as possible.
        for mask, (left, top, _, _), part in zip(masks, self.windows, self.parts(), strict=True):
            x, y = -(-left // step), -(-top // step)
            thinned = part[y * step - top :: step, x * step - left :: step]
            mask[y : y + thinned.shape[0], x : x + thinned.shape[1]] = thinned
        return masks

    def boxes(self) -> Tensor:
        """Return the tight boxes (N, 4) float32 on the CPU; zeros for a mask without pixels."""
        return torch.tensor(self.windows, dtype=torch.float32).reshape(-1, 4)

    def moved(self, x: int, y: int, image_size: Sequence[int]) -> "MaskCrops":
        """Return the masks in a larger image that has this one's upper left corner at (x, y)."""
        windows = [
            EMPTY if right == 0 else (left + x, top + y, right + x, bottom + y)
            for left, top, right, bottom in self.windows
        ]
        return MaskCrops(self.pixels, windows, image_size)

    def resized(self, image_size: Sequence[int], *, smooth: bool = True) -> "MaskCrops":
        """Resize the masks with the image: bilinearly and rounded, or to the nearest pixel."""
        scales = [new / old for new, old in zip(image_size, self.image_size, strict=True)]
        resized = [
            _resize(part, window, scales, image_size, smooth)
            for part, window in zip(self.parts(), self.windows, strict=True)
        ]
        return join_crops(resized, image_size, self.device)


def _resize(
    part: Tensor, window: Window, scales: Sequence[float], image_size: Sequence[int], smooth: bool
) -> MaskCrops:
    spans, axes = [], []
    for axis, (first, stop) in enumerate(((window[1], window[3]), (window[0], window[2]))):
        scale = scales[axis]
        start, end = math.floor(first * scale), math.ceil(stop * scale)
        end = min(end, image_size[axis])
        # Positions in the part, of which -1 and 1 are the ends.
        pixels = (torch.arange(start, end, device=part.device) + 0.5) / scale - first
        axes.append(2 * pixels / max(1, stop - first) - 1)
        spans.append(start)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
    if grid.numel() == 0 or part.numel() == 0:
        return MaskCrops(part.new_zeros(0), [EMPTY], image_size)
    mode = "bilinear" if smooth else "nearest"
    found = F.grid_sample(part[None, None].float(), grid[None], mode=mode, align_corners=False)
    return crops_of(found[0] > 0.5).moved(spans[1], spans[0], image_size)


def crops_of(masks: Tensor | MaskCrops) -> MaskCrops:
    """Crop masks (N, H, W) bool to their tight boxes; waits for the device."""
    if isinstance(masks, MaskCrops):
        return masks
    windows = [tuple(window) for window in mask_boxes(masks).long().tolist()]
    parts = (
        mask[top:bottom, left:right].reshape(-1)
        for mask, (left, top, right, bottom) in zip(masks, windows, strict=True)
    )
    return MaskCrops(torch.cat([masks.new_zeros(0), *parts]), windows, masks.shape[1:])


def join_crops(
    crops: Sequence[MaskCrops], image_size: Sequence[int], device: torch.device
) -> MaskCrops:
    """Return the masks of several sets of one image, in order."""
    nothing = torch.zeros(0, dtype=torch.bool, device=device)
    pixels = torch.cat([nothing, *(each.pixels for each in crops)])
    return MaskCrops(pixels, [w for each in crops for w in each.windows], image_size)


def whole_masks(masks: Tensor | MaskCrops) -> Tensor:
    """Return masks as (N, H, W) bool."""
    return masks.whole() if isinstance(masks, MaskCrops) else masks


def stack_masks(masks: Tensor | MaskCrops, boxes: Tensor, order: Sequence[int]) -> Tensor:
    """Stack masks and return which one is on top at each pixel.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) XYXY, integer-valued, around all pixels of each mask (`mask_boxes`); not used
            for `MaskCrops`.
        order: indices of the masks to stack, from bottom to top.

    Returns:
        (H, W) uint8 for up to 255 masks in `order`, else int32, on the masks' device: 1 + the index
        in `order` of the mask on top, 0 where there is none.
    """
    dtype = torch.uint8 if len(order) <= 255 else torch.int32
    result = torch.zeros(masks.shape[1:], dtype=dtype, device=masks.device)
    if isinstance(masks, MaskCrops):
        spans, parts = masks.windows, masks.parts()
    else:
        # Synchronizes: the regions to read depend on the masks.
        spans, parts = boxes.long().tolist() if len(order) else [], None
    for number, index in enumerate(order, start=1):
        left, top, right, bottom = spans[index]
        pixels = masks[index, top:bottom, left:right] if parts is None else parts[index]
        part = result[top:bottom, left:right]
        # Numbers increase, so the larger one is on top.
        torch.maximum(part, pixels.view(torch.uint8).to(dtype) * number, out=part)
    return result
