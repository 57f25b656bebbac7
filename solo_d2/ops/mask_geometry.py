"""Geometry of masks: mass centres, boxes, shrinking of targets.

Vectorised over masks; no function waits for the device.
"""

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


def shrink_masks(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Shrink masks bilinearly by a whole factor and round back to {0, 1}, half up.

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
        raise ValueError(f"masks are shrunk by an even factor, not by {stride}")
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


def shrink_masks_opencv(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Shrink masks as the published code does: by OpenCV's bilinear resize of 8-bit images.

    The mask becomes int(side / stride + 0.5) pixels on each side, so unless the stride divides its
    size it is stretched a little; and OpenCV's fixed-point arithmetic truncates twice, so that up
    to 0.75 can become 0. Use `shrink_masks` but for comparing with published code.

    Args:
        masks: (N, H, W) bool.
        stride: whole factor.
        size: height and width of the result; what the shrunk mask does not cover is 0.

    Returns:
        (N, *size) bool.
    """
    height, width = (int(side / stride + 0.5) for side in masks.shape[1:])
    (y0, y1), (wy0, wy1) = _opencv_taps(masks.shape[1], height, masks.device)
    (x0, x1), (wx0, wx1) = _opencv_taps(masks.shape[2], width, masks.device)
    rows = masks[:, :, x0] * wx0 + masks[:, :, x1] * wx1
    upper = (rows[:, y0] >> 4) * wy0[:, None] >> 16
    lower = (rows[:, y1] >> 4) * wy1[:, None] >> 16
    shrunk = (upper + lower + 2) >> 2 > 0
    return F.pad(shrunk, (0, size[1] - width, 0, size[0] - height))


def _opencv_taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(2, new) int64 each: the two pixels of each sample, and their weights in 1/2048."""
    position = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    position = position.clamp(0, old - 1)
    first = position.floor().long()
    fraction = position - first
    pixels = torch.stack([first, (first + 1).clamp(max=old - 1)])
    weights = (torch.stack([1 - fraction, fraction]) * 2048).round().long()
    return pixels.to(device), weights.to(device)
