"""Geometry of masks: mass centres, boxes, shrinking of targets, final resize.

Vectorised over masks; no function waits for the device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Most float32 elements that the final resize holds at once for each of its two steps (64 MiB).
RESIZE_CHUNK_ELEMENTS = 1 << 24


def mask_centers(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mass centre and area of masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 2) float32, the mean x and y of the pixel indices (0, 0 for a mask without pixels), and
        (N,) int64 pixel counts.
    """
    columns, rows = masks.sum(dim=1), masks.sum(dim=2)
    area = rows.sum(dim=1)
    x = (columns * torch.arange(masks.shape[2], device=masks.device)).sum(dim=1)
    y = (rows * torch.arange(masks.shape[1], device=masks.device)).sum(dim=1)
    return torch.stack([x, y], dim=1).float() / area.clamp(min=1).float()[:, None], area


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
    edges = []
    for line in (masks.any(dim=1), masks.any(dim=2)):  # columns, then rows
        first = line.byte().argmax(dim=1)
        last = line.shape[1] - line.flip(1).byte().argmax(dim=1)
        filled = line.any(dim=1)
        edges += [first * filled, last * filled]
    return torch.stack([edges[0], edges[2], edges[1], edges[3]], dim=1).float()


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
    count = torch.zeros(len(masks), *size, dtype=torch.uint8, device=masks.device)
    for row in (stride // 2 - 1, stride // 2):
        for column in (stride // 2 - 1, stride // 2):
            pixels = masks[:, row::stride, column::stride]
            count[:, : pixels.shape[1], : pixels.shape[2]] += pixels
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


def paste_masks(
    mask_probs: Tensor,
    *,
    stride: int,
    image_size: tuple[int, int],
    thresh: float,
    out: Tensor,
) -> None:
    """Bring soft masks to the output size: enlarge, cut off the padding, resize, threshold.

    Both resizes are bilinear, as in the published code. Done in chunks of masks, so that the memory
    beside the result does not depend on their number.

    Args:
        mask_probs: (M, H, W) float32 over the padded input.
        stride: input pixels of one mask pixel.
        image_size: height and width of the image in the padded input.
        thresh: a pixel is set above this probability.
        out: (M, H', W') bool at the output size, overwritten.
    """
    height, width = mask_probs.shape[1] * stride, mask_probs.shape[2] * stride
    output_size = (out.shape[1], out.shape[2])
    chunk = max(1, RESIZE_CHUNK_ELEMENTS // max(height * width, output_size[0] * output_size[1]))
    for start in range(0, len(mask_probs), chunk):
        part = mask_probs[start : start + chunk, None]
        part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        part = part[:, :, : image_size[0], : image_size[1]]
        if output_size != image_size:
            part = F.interpolate(part, size=output_size, mode="bilinear", align_corners=False)
        torch.gt(part[:, 0], thresh, out=out[start : start + chunk])
