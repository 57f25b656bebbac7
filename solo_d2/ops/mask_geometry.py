"""Geometry of masks: mass centers, boxes, downsampling.

Vectorized over masks; nothing synchronizes with the device.

Shape letters: N masks, H W rows and columns.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_centers(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mass centers and areas of masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 2) float32, the mean x and y of the pixel indices (zeros for an empty mask), and (N,)
        int64 pixel counts.
    """
    columns, rows = _line_counts(masks)
    area = rows.sum(dim=1)
    x = (columns * torch.arange(masks.shape[2], device=masks.device)).sum(dim=1)
    y = (rows * torch.arange(masks.shape[1], device=masks.device)).sum(dim=1)
    return torch.stack([x, y], dim=1).float() / area.clamp(min=1).float()[:, None], area


def _line_counts(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Count the pixels of each column (N, W) and row (N, H), int64, without an int64 copy.

    Eight adjacent pixels form one integer, whose bytes can be summed independently up to 255.
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
    """Compute tight boxes of masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) float32, XYXY in pixels, right and bottom edge exclusive; zeros for an empty mask.
    """
    if masks.numel() == 0:
        return torch.zeros(len(masks), 4, device=masks.device)
    pixels = masks.view(torch.uint8)  # many times faster than `any` of bool
    return boxes_of_lines(pixels.amax(dim=1) > 0, pixels.amax(dim=2) > 0)


def boxes_of_lines(columns: Tensor, rows: Tensor) -> Tensor:
    """Compute the boxes of `mask_boxes` from flags of non-empty columns and rows.

    Args:
        columns: (N, W) bool, whether the mask has pixels in the column; W is at least 1.
        rows: (N, H) bool, likewise for rows.
    """
    (left, right), (top, bottom) = line_spans(columns), line_spans(rows)
    return torch.stack([left, top, right, bottom], dim=1).float()


def line_spans(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first set index of each row of (N, L) bool flags, and one past the last.

    L is at least 1. Both results are (N,) int64, and 0 for a row without flags.
    """
    flags = lines.byte()
    first = flags.argmax(dim=1)
    stop = lines.shape[1] - flags.flip(1).argmax(dim=1)
    return first, stop * flags.amax(dim=1)


def downsample_masks(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Downsample masks bilinearly by an integer factor and round to {0, 1}, half up.

    The value of a sample is the mean of the middle 2x2 pixels of its block, as in OpenCV's bilinear
    resize of the padded mask. Pixels outside the image are 0.

    Args:
        masks: (N, H, W) bool, the upper left part of the padded input.
        stride: even factor, or 1.
        size: height and width of the result: the padded size divided by the stride.

    Returns:
        (N, *size) bool.
    """
    if stride == 1:
        return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))
    if stride % 2:
        raise ValueError(f"masks are downsampled by an even factor, not by {stride}")
    pixels, middle = masks.view(torch.uint8), (stride // 2 - 1, stride // 2)
    # Rows first: reading whole rows is fast and leaves less data for the columns.
    pairs = pixels.new_zeros(len(masks), size[0], masks.shape[2])
    for row in middle:
        taken = pixels[:, row::stride]
        pairs[:, : taken.shape[1]] += taken
    count = pixels.new_zeros(len(masks), *size)
    for column in middle:
        taken = pairs[:, :, column::stride]
        count[:, :, : taken.shape[2]] += taken
    return count >= 2
