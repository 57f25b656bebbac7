"""Geometry of masks: mass centres, boxes, downsampling of targets, masks on top of each other.

Vectorised over masks; only `stack_masks` waits for the device.

Shape letters: N masks, H and W rows and columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_centers(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mass centre and area of masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 2) float32, the mean x and y of the pixel indices (0, 0 for a mask without pixels), and
        (N,) int64 pixel counts.
    """
    columns, rows = _line_counts(masks)
    area = rows.sum(dim=1)
    x = (columns * torch.arange(masks.shape[2], device=masks.device)).sum(dim=1)
    y = (rows * torch.arange(masks.shape[1], device=masks.device)).sum(dim=1)
    return torch.stack([x, y], dim=1).float() / area.clamp(min=1).float()[:, None], area


def _line_counts(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of each column and of each row, without the int64 copy that `sum` makes of bool.

    Eight pixels side by side are one number; its bytes add up independently to 255.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, W) and (N, H) int64.
    """
    _, height, width = masks.shape
    if width % 8 or masks.storage_offset() % 8 or not masks.is_contiguous():
        masks = F.pad(masks, (0, -width % 8)).contiguous()
    if masks.numel() == 0:  # empty arrays of NumPy have strides of 0, which `view` refuses
        masks = masks.new_empty(masks.shape)
    eights = masks.view(torch.int64)
    columns, rows = (
        torch.stack([part.sum(dim=dim) for part in eights.split(255, dim=dim)]).view(torch.uint8)
        for dim in (1, 2)
    )
    return columns[..., :width].sum(dim=0), rows.unflatten(2, (height, 8)).sum(dim=(0, 3))


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) float32, XYXY in pixels, right and lower edge exclusive; zeros for a mask without
        pixels.
    """
    if masks.numel() == 0:
        return torch.zeros(len(masks), 4, device=masks.device)
    pixels = masks.view(torch.uint8)  # many times faster than `any` of bool
    return boxes_of_lines(pixels.amax(dim=1) > 0, pixels.amax(dim=2) > 0)


def boxes_of_lines(columns: Tensor, rows: Tensor) -> Tensor:
    """Tight boxes of masks, from where they have pixels.

    Args:
        columns: (N, W) bool, whether a mask has pixels in the column.
        rows: (N, H) bool, the same of rows; W and H are at least 1.

    Returns:
        (N, 4) float32 as from `mask_boxes`.
    """
    (left, right), (top, bottom) = line_spans(columns), line_spans(rows)
    return torch.stack([left, top, right, bottom], dim=1).float()


def line_spans(lines: Tensor) -> tuple[Tensor, Tensor]:
    """First flag of each row, and one after the last.

    Args:
        lines: (N, L) bool, L at least 1.

    Returns:
        (N,) int64 each; both 0 where there is no flag.
    """
    flags = lines.byte()
    first = flags.argmax(dim=1)
    stop = lines.shape[1] - flags.flip(1).argmax(dim=1)
    return first, stop * flags.amax(dim=1)


def downsample_masks(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Downsample masks bilinearly by a whole factor and round back to {0, 1}, half up.

    The value at a sample position is the mean of the middle 2x2 pixels of each block, which is
    what OpenCV's bilinear resize of the padded mask gives. What lies outside the image is 0.

    Args:
        masks: (N, H, W) bool, upper left part of the padded input.
        stride: even factor, or 1.
        size: height and width of the result, the padded size divided by the stride.

    Returns:
        (N, *size) bool.
    """
    if stride == 1:
        return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))
    if stride % 2:
        raise ValueError(f"masks are downsampled by an even factor, not by {stride}")
    pixels, middle = masks.view(torch.uint8), (stride // 2 - 1, stride // 2)
    # Rows first: reading whole rows is fast, and leaves a quarter for the columns.
    pairs = pixels.new_zeros(len(masks), size[0], masks.shape[2])
    for row in middle:
        taken = pixels[:, row::stride]
        pairs[:, : taken.shape[1]] += taken
    count = pixels.new_zeros(len(masks), *size)
    for column in middle:
        taken = pairs[:, :, column::stride]
        count[:, :, : taken.shape[2]] += taken
    return count >= 2


def stack_masks(masks: Tensor, boxes: Tensor, order: Sequence[int]) -> Tensor:
    """Lay masks on each other and say which one is on top at each pixel.

    Args:
        masks: (N, H, W) bool, on any device.
        boxes: (N, 4) XYXY, of whole numbers, about all pixels of each mask (`mask_boxes`).
        order: indices of masks, the lowest one first; those that are left out are not laid.

    Returns:
        (H, W) of whole numbers, uint8 for up to 255 masks in `order` and else int32, on the masks'
        device: 1 where the first of `order` is on top, 2 where the second is, ...; 0 where there is
        none.
    """
    dtype = torch.uint8 if len(order) <= 255 else torch.int32
    result = torch.zeros(masks.shape[1:], dtype=dtype, device=masks.device)
    pixels = masks.view(torch.uint8)
    # Waits for the device: the parts to look at depend on the masks.
    spans = boxes.long().tolist() if len(order) else []
    for number, index in enumerate(order, start=1):
        left, top, right, bottom = spans[index]
        part = result[top:bottom, left:right]
        # Numbers rise, so the larger one is on top.
        torch.maximum(part, pixels[index, top:bottom, left:right].to(dtype) * number, out=part)
    return result
