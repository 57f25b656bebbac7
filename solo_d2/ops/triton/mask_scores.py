"""Scores and spans of masks from sums over blocks of pixels (SOLOv2, section 2.1).

    area[m]   = sum_j areas[m, j]
    scores[m] = class_scores[m] * sum_j soft_sums[m, j] / area[m], or 0 if area[m] <= least_areas[m]

Shape letters: M masks, J blocks of pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.binary_masks import BLOCK_PIXELS
from solo_d2.ops.triton.launch import launch

# Masks of one program, and blocks of pixels that it sums at a time.
BLOCK_MASKS, BLOCK_SUMS = 16, 64


@triton.jit(
    do_not_specialize=["num_sums", "num_masks"],
    do_not_specialize_on_alignment=["areas", "soft_sums", "class_scores", "least_areas"],
)
def _mask_scores_kernel(
    areas, soft_sums, class_scores, least_areas, scores, spans, num_sums, num_masks,
    PIXELS: tl.constexpr, BLOCK_MASKS: tl.constexpr, BLOCK_SUMS: tl.constexpr,
):  # fmt: skip
    """One program scores BLOCK_MASKS masks.

    `spans` (M, 2) are the first and last pixel of the blocks with pixels of a mask. Masks with
    score 0 get the span of an empty mask, so that later kernels skip them.
    """
    mask = tl.program_id(0) * BLOCK_MASKS + tl.arange(0, BLOCK_MASKS)
    is_mask = mask < num_masks
    area = tl.zeros([BLOCK_MASKS, BLOCK_SUMS], tl.int32)
    soft_sum = tl.zeros([BLOCK_MASKS, BLOCK_SUMS], tl.float32)
    first = tl.full([BLOCK_MASKS, BLOCK_SUMS], 0, tl.int32) + num_sums
    last = tl.full([BLOCK_MASKS, BLOCK_SUMS], -1, tl.int32)
    for start in range(0, num_sums, BLOCK_SUMS):
        block = start + tl.arange(0, BLOCK_SUMS)[None, :]
        where = mask[:, None].to(tl.int64) * num_sums + block
        inside = is_mask[:, None] & (block < num_sums)
        part = tl.load(areas + where, mask=inside, other=0)
        area += part
        soft_sum += tl.load(soft_sums + where, mask=inside, other=0.0)
        first = tl.where(part > 0, tl.minimum(first, block), first)
        last = tl.where(part > 0, tl.maximum(last, block), last)
    total = tl.sum(area, axis=1).to(tl.float32)
    maskness = tl.div_rn(tl.sum(soft_sum, axis=1), tl.maximum(total, 1.0))
    score = tl.load(class_scores + mask, mask=is_mask, other=0.0) * maskness
    is_large = total > tl.load(least_areas + mask, mask=is_mask, other=0.0)
    is_instance = is_large & (score > 0)  # NaN is not above 0
    tl.store(scores + mask, tl.where(is_instance, score, 0.0), mask=is_mask)
    begin = tl.where(is_instance, tl.min(first, axis=1), num_sums) * PIXELS
    end = tl.where(is_instance, tl.max(last, axis=1) + 1, 0) * PIXELS
    tl.store(spans + mask * 2, begin, mask=is_mask)
    tl.store(spans + mask * 2 + 1, end - 1, mask=is_mask)


def mask_scores_triton(
    areas: Tensor, soft_sums: Tensor, class_scores: Tensor, least_areas: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch the kernel.

    Args:
        areas: (M, J) int32, for blocks of `BLOCK_PIXELS` pixels.
        soft_sums: (M, J) float32.
        class_scores: (M,) float32.
        least_areas: (M,) float32, exclusive.

    Returns:
        Scores (M,) float32, and spans (M, 2) int32 as in `MaskRows`, empty where the score is 0.
    """
    num_masks, num_sums = areas.shape
    scores, spans = torch.empty_like(class_scores), areas.new_empty(num_masks, 2)
    if num_masks:
        launch(
            _mask_scores_kernel, (triton.cdiv(num_masks, BLOCK_MASKS),),
            areas.contiguous(), soft_sums.contiguous(), class_scores.contiguous(),
            least_areas.contiguous(), scores, spans, num_sums, num_masks,
            PIXELS=BLOCK_PIXELS, BLOCK_MASKS=BLOCK_MASKS, BLOCK_SUMS=BLOCK_SUMS,
        )  # fmt: skip
    return scores, spans
