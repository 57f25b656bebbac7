"""Soft-NMS (arXiv:1704.04503, section 3) on masks, a baseline of SOLOv2's table 3c."""

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

    Each round fixes the best score left, of equal ones the earlier, and multiplies the scores left
    by f(iou) with that mask: exp(-sigma * iou^2), or 1 - iou where iou > thresh. So the order of
    the masks may change on the way, and M rounds follow one another.

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], not increasing. Of two equal ones the earlier is better.
        kernel: "gaussian" or "linear"; anything else raises ValueError.
        sigma: sharpness of the gaussian, no unit; the paper's sigma is its inverse, so 2.0 is the
            paper's 0.5. Unused by "linear".
        thresh: least IoU that lowers a score, exclusive. Unused by "gaussian".
        class_agnostic: whether masks of different classes lower each other too.
        backend: "auto" by device, "torch", "tiled" or "triton" (see `solo_d2.ops.mask_iou`).
        areas: (M,) pixels of each mask, integers or float; None: they are counted.
        rows: which of `masks`, then (N, H, W), are meant; None: all in order.

    Returns:
        (M,) float32, finite, never above `scores`, in input order; (0,) for no masks.
    """
    check_choice("Soft-NMS kernel", kernel, KERNELS)
    return run_nms(
        _soft_nms,
        masks,
        labels,
        scores,
        class_agnostic=class_agnostic,
        backend=backend,
        areas=areas,
        rows=rows,
        kernel=kernel,
        sigma=sigma,
        thresh=thresh,
    )


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
    """The rounds, on the host: one wait for the device, not several launches a round.

    Args:
        decay: (M, M) float32 in [0, 1], symmetric.
        scores: (M,) float32, at least 0.

    Returns:
        (M,) float32 on the device of `scores`.
    """
    rows, left = decay.cpu(), scores.cpu().clone()
    result = torch.zeros_like(left)
    for _ in range(len(left)):
        best = int(left.argmax())  # the first of equal ones
        value = float(left[best])
        if value <= 0:  # what is left stays 0
            break
        result[best] = value
        left *= rows[best]
        left[best] = -1  # taken; times any decay it stays at or below 0
    return result.to(scores.device)
