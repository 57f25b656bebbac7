"""Sequential NMS from integer overlaps, in one launch: a single program holds all scores.

Shape letters: M masks, P pixels of a mask.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch
from solo_d2.ops.triton.nms_decay import FLOAT32_PIXELS, iou_of_counts

# A program is compiled for this number of masks and for each larger power of two.
LEAST_LANES = 512


@triton.jit(do_not_specialize=["num_masks"], do_not_specialize_on_alignment=["scores"])
def _hard_kernel(
    overlaps, scores, result, thresh, num_masks, EXACT: tl.constexpr, BLOCK: tl.constexpr
):
    """For i = 0, 1, ...: if i is kept, remove every j > i with iou[i, j] > thresh.

    A single program; lane j holds whether mask j is kept.
    """
    j = tl.arange(0, BLOCK)
    inside = j < num_masks
    stride = tl.cast(num_masks, tl.int64)
    area = tl.load(overlaps + j * (stride + 1), mask=inside, other=0)
    kept = inside.to(tl.int32)
    for i in range(num_masks):
        row = overlaps + i * stride
        shared = tl.load(row + j, mask=inside & (j > i), other=0)
        removes = iou_of_counts(shared, tl.load(row + i), area, EXACT) > thresh
        i_kept = tl.sum(tl.where(j == i, kept, 0), axis=0)
        kept = tl.where(removes & (j > i) & (i_kept > 0), 0, kept)
    tl.store(result + j, tl.load(scores + j, mask=inside, other=0.0) * kept, mask=inside)


@triton.jit(do_not_specialize=["num_masks"], do_not_specialize_on_alignment=["scores"])
def _soft_kernel(
    overlaps, scores, result, sigma, thresh, num_masks,
    GAUSSIAN: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """M rounds: fix the best remaining score, multiply the others by f(iou) with its mask.

    f(x) = exp(-sigma x^2), or 1 - x where x > thresh. A single program; lane j holds the score of
    mask j, or -1 once it is fixed.
    """
    j = tl.arange(0, BLOCK)
    inside = j < num_masks
    stride = tl.cast(num_masks, tl.int64)
    area = tl.load(overlaps + j * (stride + 1), mask=inside, other=0)
    left = tl.load(scores + j, mask=inside, other=-1.0)
    taken = left
    for _ in range(num_masks):
        value = tl.max(left, axis=0)
        best = tl.min(tl.where(left == value, j, BLOCK), axis=0)  # the first of ties
        taken = tl.where(j == best, value, taken)
        upper = tl.minimum(best, j) * stride + tl.maximum(best, j)
        shared = tl.load(overlaps + upper, mask=inside, other=0)
        area_best = tl.load(overlaps + best * (stride + 1))
        iou = iou_of_counts(shared, area_best, area, EXACT)
        if GAUSSIAN:
            decay = tl.exp(-sigma * iou * iou)
        else:
            decay = tl.where(iou > thresh, 1 - iou, 1.0)
        left = tl.where(left >= 0, left * decay, left)
        left = tl.where(j == best, -1.0, left)
    tl.store(result + j, taken, mask=inside)


def num_lanes(num_masks: int) -> int:
    """Return the number of lanes of the program for this number of masks."""
    return max(LEAST_LANES, triton.next_power_of_2(num_masks))


def hard_nms_triton(overlaps: Tensor, scores: Tensor, num_pixels: int, *, thresh: float) -> Tensor:
    """Compute scores after hard NMS.

    Args:
        overlaps: (M, M) int32 counts of `mask_overlaps`, M > 0.
        scores: (M,) float32.
        num_pixels: P.
        thresh: a mask is removed if the IoU is strictly larger.

    Returns:
        (M,) float32: the score, or 0.
    """
    result = torch.empty_like(scores)
    launch(
        _hard_kernel, (1,),
        overlaps, scores.contiguous(), result, float(thresh), len(scores),
        EXACT=num_pixels <= FLOAT32_PIXELS, BLOCK=num_lanes(len(scores)),
    )  # fmt: skip
    return result


def soft_nms_triton(
    overlaps: Tensor, scores: Tensor, num_pixels: int, *, kernel: str, sigma: float, thresh: float
) -> Tensor:
    """Compute scores after Soft-NMS.

    Args:
        overlaps: (M, M) int32 counts of `mask_overlaps`, M > 0.
        scores: (M,) float32, at least 0.
        num_pixels: P.
        kernel: "gaussian" or "linear".
        sigma: sharpness of the gaussian.
        thresh: minimum IoU that lowers a score with "linear", exclusive.

    Returns:
        (M,) float32, never above `scores`.
    """
    result = torch.empty_like(scores)
    launch(
        _soft_kernel, (1,),
        overlaps, scores.contiguous(), result, float(sigma), float(thresh), len(scores),
        GAUSSIAN=kernel == "gaussian", EXACT=num_pixels <= FLOAT32_PIXELS,
        BLOCK=num_lanes(len(scores)),
    )  # fmt: skip
    return result
