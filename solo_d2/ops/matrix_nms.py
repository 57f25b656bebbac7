"""Matrix NMS (SOLOv2, arXiv:2003.10152, section 2.2)."""

from functools import partial

import torch
from torch import Tensor

from solo_d2.ops.mask_iou import MaskRows, iou_rows
from solo_d2.ops.nms_family import check_choice, run_nms

KERNELS = ("gaussian", "linear")
# Rows of the IoU matrix that are computed at a time, so that they stay in the cache.
ROWS_AT_ONCE = 64


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    class_agnostic: bool = False,
    backend: str = "auto",
    areas: Tensor | None = None,
    rows: MaskRows | None = None,
) -> Tensor:
    """Lower each score by its mask's overlap with better masks of the same class.

    The decay of mask j is the minimum of f(iou_ij) / f(max_k iou_ki) over the better masks i, with
    f(iou) = exp(-sigma * iou^2) or 1 - iou (equation 4; the published code multiplies by sigma
    where the paper divides).

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], non-increasing. Of two equal ones the earlier is better.
        kernel: "gaussian" or "linear"; anything else raises ValueError.
        sigma: sharpness of the gaussian, no unit; larger removes more. Unused by "linear".
        class_agnostic: whether masks of different classes suppress each other too.
        backend: "auto" by device, "torch", "tiled" or "triton" (see `solo_d2.ops.mask_iou`).
        areas: (M,) pixels of each mask, integers or float; None: counted from the masks.
        rows: selection of M of `masks`, which then are (N, H, W); None: all in order.

    Returns:
        (M,) float32, finite, never above `scores`, in input order; (0,) for no masks.
    """
    check_choice("Matrix NMS kernel", kernel, KERNELS)
    nms = partial(_matrix_nms, kernel=kernel, sigma=sigma)
    return run_nms(nms, masks, labels, scores, class_agnostic, backend, areas, rows)


def _matrix_nms(
    overlaps: Tensor, scores: Tensor, num_pixels: int, backend: str, *, kernel: str, sigma: float
) -> Tensor:
    if backend == "torch":  # the equation on whole matrices: the reference
        iou = iou_rows(overlaps, 0, len(overlaps), num_pixels)
        return scores * matrix_decay(iou, kernel=kernel, sigma=sigma)
    if backend == "triton":
        from solo_d2.ops.triton.nms_decay import matrix_nms_decay_triton

        return matrix_nms_decay_triton(overlaps, scores, num_pixels, kernel=kernel, sigma=sigma)
    return _decay_by_rows(overlaps, scores, num_pixels, kernel=kernel, sigma=sigma)


def matrix_decay(iou: Tensor, *, kernel: str, sigma: float) -> Tensor:
    """Compute the decay of equation 4.

    Args:
        iou: (..., M, M); row i, column j is the IoU of mask j with the better mask i of its class,
            else 0.
        kernel: see `matrix_nms`.
        sigma: see `matrix_nms`.

    Returns:
        (..., M) factors of the scores, in [0, 1].
    """
    worst = iou.amax(dim=-2)[..., None]  # the largest IoU of mask i itself with a better one
    if kernel == "gaussian":
        decay = torch.exp(-sigma * (iou.square() - worst.square()))
    else:
        # The original already gives an exact duplicate a decay of 0. The floor avoids 0/0, as in
        # the published code, for a third copy.
        decay = (1 - iou) / (1 - worst).clamp(min=torch.finfo(iou.dtype).tiny)
        decay = torch.where(worst < 1, decay, torch.ones_like(decay))
    return decay.amin(dim=-2).clamp(max=1)


def _decay_by_rows(
    overlaps: Tensor, scores: Tensor, num_pixels: int, *, kernel: str, sigma: float
) -> Tensor:
    """Compute `matrix_decay` from counts in one pass, since all better rows precede a row.

    The gaussian's minimum quotient has the largest iou^2 - worst^2, so one exponential per mask is
    enough.
    """
    worst = torch.zeros_like(scores)
    # Largest exponent of the gaussian, minimum quotient of the linear kernel. A mask without better
    # ones keeps its score.
    extreme = torch.zeros_like(scores) if kernel == "gaussian" else torch.ones_like(scores)
    for start in range(0, len(scores), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(scores))
        iou = iou_rows(overlaps, start, stop, num_pixels)
        torch.maximum(worst[start:], iou.amax(dim=0), out=worst[start:])
        own = worst[start:stop, None]
        if kernel == "gaussian":
            most = iou.square_().sub_(own.square()).amax(dim=0)
            torch.maximum(extreme[start:], most, out=extreme[start:])
        else:
            # Exact duplicates do not suppress other masks.
            floor = torch.where(own < 1, 1 - own, 1e-30)
            least = (1 - iou).div_(floor).masked_fill_(own >= 1, 1).amin(dim=0)
            torch.minimum(extreme[start:], least, out=extreme[start:])
    return scores * (torch.exp(-sigma * extreme) if kernel == "gaussian" else extreme)
