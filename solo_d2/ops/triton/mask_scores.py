"""Scores of masks from the sums over parts of the image (SOLOv2, section 2.1).

    area[m]   = sum_j areas[j, m]
    scores[m] = class_scores[m] * sum_j soft_sums[j, m] / area[m], or 0 if area[m] <= least_areas[m]

Shape letters: M masks, J parts of the image.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch

# Masks of one program, and parts of the image that it adds up at a time.
BLOCK_MASKS, BLOCK_PARTS = 16, 64


@triton.jit(
    do_not_specialize=["num_parts", "num_masks"],
    do_not_specialize_on_alignment=["areas", "soft_sums", "class_scores", "least_areas"],
)
def _mask_scores_kernel(
    areas, soft_sums, class_scores, least_areas, scores, num_parts, num_masks,
    BLOCK_PARTS: tl.constexpr, BLOCK_MASKS: tl.constexpr,
):  # fmt: skip
    """One program scores BLOCK_MASKS masks."""
    mask = tl.program_id(0) * BLOCK_MASKS + tl.arange(0, BLOCK_MASKS)
    is_mask = mask < num_masks
    part_areas = tl.zeros([BLOCK_PARTS, BLOCK_MASKS], tl.int32)
    part_sums = tl.zeros([BLOCK_PARTS, BLOCK_MASKS], tl.float32)
    for first in range(0, num_parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[:, None]
        where = part.to(tl.int64) * num_masks + mask[None, :]
        inside = (part < num_parts) & is_mask[None, :]
        part_areas += tl.load(areas + where, mask=inside, other=0).to(tl.int32)
        part_sums += tl.load(soft_sums + where, mask=inside, other=0.0)
    area = tl.sum(part_areas, axis=0).to(tl.float32)
    maskness = tl.div_rn(tl.sum(part_sums, axis=0), tl.maximum(area, 1.0))
    score = tl.load(class_scores + mask, mask=is_mask, other=0.0) * maskness
    is_large = area > tl.load(least_areas + mask, mask=is_mask, other=0.0)
    # A score of NaN is not above 0.
    tl.store(scores + mask, tl.where(is_large & (score > 0), score, 0.0), mask=is_mask)


def mask_scores_triton(
    areas: Tensor, soft_sums: Tensor, class_scores: Tensor, least_areas: Tensor
) -> Tensor:
    """Launch the kernel.

    Args:
        areas: (J, M) integers.
        soft_sums: (J, M) float32.
        class_scores: (M,) float32.
        least_areas: (M,) float32, exclusive.

    Returns:
        (M,) float32.
    """
    num_parts, num_masks = areas.shape
    scores = torch.empty_like(class_scores)
    if num_masks:
        launch(
            _mask_scores_kernel, (triton.cdiv(num_masks, BLOCK_MASKS),),
            areas.contiguous(), soft_sums.contiguous(), class_scores.contiguous(),
            least_areas.contiguous(), scores, num_parts, num_masks,
            BLOCK_PARTS=BLOCK_PARTS, BLOCK_MASKS=BLOCK_MASKS,
        )  # fmt: skip
    return scores
