"""Matrix NMS from integer overlaps, without writing a float matrix.

Shape letters: M masks, P pixels of a mask.

Two launches, since the second needs the column maxima of the first. Each reads the upper triangle
of the counts once and computes the IoU on the fly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch

# Columns of one program, and rows that it reads at a time.
BLOCK_COLUMNS, BLOCK_ROWS = 16, 64
# Up to this number of pixels float32 holds every count and every sum of two areas exactly.
FLOAT32_PIXELS = 1 << 23


@triton.jit
def iou_of_counts(shared, area_a, area_b, EXACT: tl.constexpr):
    """Float32 nearest to shared / (area_a + area_b - shared); 0 for two empty masks.

    EXACT: whether float32 holds the counts exactly; else the quotient is computed in float64.
    """
    if EXACT:
        union = area_a.to(tl.float32) + area_b.to(tl.float32) - shared.to(tl.float32)
        iou = tl.div_rn(shared.to(tl.float32), tl.maximum(union, 1.0))
    else:
        union = area_a.to(tl.float64) + area_b.to(tl.float64) - shared.to(tl.float64)
        iou = (shared.to(tl.float64) / tl.maximum(union, 1.0)).to(tl.float32)
    return iou


@triton.jit
def _iou_tile(overlaps, row, column, area_column, num_masks, EXACT: tl.constexpr):
    """IoU of masks `row` (R, 1) and `column` (1, C), 0 on and below the diagonal."""
    upper = (row < column) & (column < num_masks)
    stride = tl.cast(num_masks, tl.int64)
    area_row = tl.load(overlaps + row * (stride + 1), mask=row < num_masks, other=0)
    shared = tl.load(overlaps + row * stride + column, mask=upper, other=0)
    return iou_of_counts(shared, area_row, area_column, EXACT)


@triton.jit(do_not_specialize=["num_masks"])
def _worst_kernel(
    overlaps, worst, num_masks,
    EXACT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """worst[j] = max_{i < j} iou[i, j]; one program handles BLOCK_COLUMNS columns."""
    start = tl.program_id(0) * BLOCK_COLUMNS
    j = start + tl.arange(0, BLOCK_COLUMNS)
    column = j[None, :].to(tl.int64)
    area = tl.load(
        overlaps + column * (tl.cast(num_masks, tl.int64) + 1), mask=column < num_masks, other=0
    )
    most = tl.zeros([BLOCK_COLUMNS], tl.float32)
    for first in range(0, tl.minimum(start + BLOCK_COLUMNS, num_masks), BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS))[:, None].to(tl.int64)
        iou = _iou_tile(overlaps, row, column, area, num_masks, EXACT)
        most = tl.maximum(most, tl.max(iou, axis=0))
    tl.store(worst + j, most, mask=j < num_masks)


@triton.jit(do_not_specialize=["num_masks"], do_not_specialize_on_alignment=["scores"])
def _decay_kernel(
    overlaps, worst, scores, result, sigma, num_masks,
    GAUSSIAN: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """result[j] = scores[j] * min(1, min_{i < j} f(iou[i, j]) / f(worst[i])).

    f(x) = exp(-sigma x^2), with the minimum quotient exp(-sigma max(iou^2 - worst^2)), or 1 - x.
    One program handles BLOCK_COLUMNS columns.
    """
    start = tl.program_id(0) * BLOCK_COLUMNS
    j = start + tl.arange(0, BLOCK_COLUMNS)
    column = j[None, :].to(tl.int64)
    area = tl.load(
        overlaps + column * (tl.cast(num_masks, tl.int64) + 1), mask=column < num_masks, other=0
    )
    exponent = tl.zeros([BLOCK_COLUMNS], tl.float32)
    quotient = tl.full([BLOCK_COLUMNS], 1.0, tl.float32)
    for first in range(0, tl.minimum(start + BLOCK_COLUMNS, num_masks), BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS))[:, None].to(tl.int64)
        iou = _iou_tile(overlaps, row, column, area, num_masks, EXACT)
        own = tl.load(worst + row, mask=row < num_masks, other=0.0)
        if GAUSSIAN:
            exponent = tl.maximum(exponent, tl.max(iou * iou - own * own, axis=0))
        else:
            # Exact duplicates (own = 1) do not suppress other masks.
            least = tl.where(own < 1, tl.div_rn(1 - iou, tl.where(own < 1, 1 - own, 1.0)), 1.0)
            quotient = tl.minimum(quotient, tl.min(least, axis=0))
    decay = tl.exp(-sigma * exponent) if GAUSSIAN else quotient
    inside = j < num_masks
    tl.store(result + j, tl.load(scores + j, mask=inside) * decay, mask=inside)


def worst_iou_triton(overlaps: Tensor, num_pixels: int) -> Tensor:
    """Compute the largest IoU of each mask with a better one of its group.

    Args:
        overlaps: (M, M) int32 counts of `mask_overlaps`.
        num_pixels: P.

    Returns:
        (M,) float32 in [0, 1].
    """
    num_masks = len(overlaps)
    worst = overlaps.new_empty(num_masks, dtype=torch.float32)
    grid = (triton.cdiv(num_masks, BLOCK_COLUMNS),)
    launch(
        _worst_kernel, grid,
        overlaps, worst, num_masks, EXACT=num_pixels <= FLOAT32_PIXELS,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS,
    )  # fmt: skip
    return worst


def matrix_nms_decay_triton(
    overlaps: Tensor, scores: Tensor, num_pixels: int, *, kernel: str, sigma: float
) -> Tensor:
    """Compute scores after Matrix NMS.

    Args:
        overlaps: (M, M) int32 counts of `mask_overlaps`, M > 0.
        scores: (M,) float32.
        num_pixels: P.
        kernel: "gaussian" or "linear".
        sigma: sharpness of the gaussian.

    Returns:
        (M,) float32, never above `scores`.
    """
    num_masks = len(overlaps)
    result = torch.empty_like(scores)
    grid = (triton.cdiv(num_masks, BLOCK_COLUMNS),)
    launch(
        _decay_kernel, grid,
        overlaps, worst_iou_triton(overlaps, num_pixels), scores.contiguous(), result,
        float(sigma), num_masks, GAUSSIAN=kernel == "gaussian",
        EXACT=num_pixels <= FLOAT32_PIXELS,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS,
    )  # fmt: skip
    return result
