"""Overlaps of binary masks, exact on every device and under autocast."""

import torch
from torch import Tensor


def mask_iou(masks: Tensor) -> Tensor:
    """Intersection over union of all pairs of masks.

    Args:
        masks: (M, H, W) bool.

    Returns:
        (M, M) float32, symmetric; 0 where both masks are empty, so never NaN.
    """
    flat = masks.flatten(1).float()
    # float32 counts exactly up to 2^24 pixels; the half precision of autocast does not.
    with torch.autocast(masks.device.type, enabled=False):
        intersection = flat @ flat.T
    area = intersection.diagonal()
    union = area[:, None] + area[None, :] - intersection
    return intersection / union.clamp(min=1)
