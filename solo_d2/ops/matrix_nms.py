"""Matrix NMS (SOLOv2, arXiv:2003.10152, section 2.2)."""

import torch
from torch import Tensor

from solo_d2.ops.mask_iou import mask_iou


def matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Lower each score by its mask's overlap with better masks of the same class.

    The decay of mask j is the least f(iou_ij) / f(largest iou_ki) over the better masks i, with
    f(iou) = exp(-sigma * iou^2) or 1 - iou (equation 4; the published code multiplies by sigma
    where the paper divides).

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], not increasing. Of two equal ones the earlier is better.
        kernel: "gaussian" or "linear"; anything else raises ValueError.
        sigma: sharpness of the gaussian, no unit; larger removes more. Unused by "linear".

    Returns:
        (M,) float32, finite, never above `scores`, in input order; (0,) for no masks.
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"unknown Matrix NMS kernel {kernel!r}: choose 'gaussian' or 'linear'")
    if len(masks) == 0:
        return scores.clone()
    same_class = labels[:, None] == labels[None, :]
    # iou[i, j]: overlap of j with the better mask i of its class, else 0.
    iou = (mask_iou(masks) * same_class).triu(diagonal=1)
    worst = iou.amax(dim=0)[:, None]  # how much mask i itself is overlapped by better ones
    if kernel == "gaussian":
        decay = torch.exp(-sigma * (iou.square() - worst.square()))
    else:
        # An exact duplicate has decay 0 through its original; what it does to a third copy (0/0 in
        # the published code) must not matter, hence the floor.
        decay = (1 - iou) / (1 - worst).clamp(min=torch.finfo(iou.dtype).tiny)
        decay = torch.where(worst < 1, decay, torch.ones_like(decay))
    return scores * decay.amin(dim=0).clamp(max=1)
