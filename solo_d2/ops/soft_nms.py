"""Soft-NMS (arXiv:1704.04503, section 3) on masks, a baseline of SOLOv2's table 3c."""

from functools import partial

import torch
from torch import Tensor

from solo_d2.ops.mask_iou import MaskRows, iou_rows
from solo_d2.ops.nms_family import check_choice, run_nms

KERNELS = ("gaussian", "linear")


def soft_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    thresh: float = 0.5,
    class_agnostic: bool = False,
    backend: str = "auto",
    areas: Tensor | None = None,
    rows: MaskRows | None = None,
) -> Tensor:
    """Lower the scores of masks that overlap better ones of their class, best first.

    Each of M sequential rounds fixes the best remaining score (ties in order) and multiplies the
    others by f(iou) with that mask: exp(-sigma * iou^2), or 1 - iou where iou > thresh. The order
    of the masks may change in the process.

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], non-increasing. Of two equal ones the earlier is better.
        kernel: "gaussian" or "linear"; anything else raises ValueError.
        sigma: sharpness of the gaussian, no unit; the paper's sigma is its inverse, so 2.0 is the
            paper's 0.5. Unused by "linear".
        thresh: minimum IoU that lowers a score, exclusive. Unused by "gaussian".
        class_agnostic: whether masks of different classes suppress each other too.
        backend: "auto" by device, "torch", "tiled" or "triton" (see `solo_d2.ops.mask_iou`).
        areas: (M,) pixels of each mask, integers or float; None: counted from the masks.
        rows: selection of M of `masks`, which then are (N, H, W); None: all in order.

    Returns:
        (M,) float32, finite, never above `scores`, in input order; (0,) for no masks.
    """
    check_choice("Soft-NMS kernel", kernel, KERNELS)
    nms = partial(_soft_nms, kernel=kernel, sigma=sigma, thresh=thresh)
    return run_nms(nms, masks, labels, scores, class_agnostic, backend, areas, rows)


def _soft_nms(
    overlaps: Tensor,
    scores: Tensor,
    num_pixels: int,
    backend: str,
    *,
    kernel: str,
    sigma: float,
    thresh: float,
) -> Tensor:
    if backend == "triton":
        from solo_d2.ops.triton.nms_greedy import soft_nms_triton

        return soft_nms_triton(
            overlaps, scores, num_pixels, kernel=kernel, sigma=sigma, thresh=thresh
        )
    iou = iou_rows(overlaps, 0, len(overlaps), num_pixels)
    iou = iou + iou.T
    if kernel == "gaussian":
        decay = iou.square_().mul_(-sigma).exp_()
    else:
        decay = torch.where(iou > thresh, 1 - iou, 1)
    return _rounds(decay, scores)


def _rounds(decay: Tensor, scores: Tensor) -> Tensor:
    """Run the rounds on the host: one synchronization instead of several launches per round.

    `decay` is (M, M) float32 in [0, 1], symmetric; scores are (M,) float32, at least 0.
    """
    rows, left = decay.cpu(), scores.cpu().clone()
    result = torch.zeros_like(left)
    for _ in range(len(left)):
        best = int(left.argmax())  # the first of ties
        value = float(left[best])
        if value <= 0:  # the remaining scores stay 0
            break
        result[best] = value
        left *= rows[best]
        left[best] = -1  # done: never above 0 again
    return result.to(scores.device)
