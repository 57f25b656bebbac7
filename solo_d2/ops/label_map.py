"""Masks on top of each other as one map, which is all that a picture or a PNG needs of them.

Shape letters: N masks, H and W rows and columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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
