"""Areas and intersections of binary masks on tensor cores, as exact integers.

Shape letters: M masks, P pixels of a mask.

The masks are sorted by group, and inside by where they lie, so that a block of neighbours covers
few groups and few rows of the image. A block of pairs is then skipped where the groups differ, and
its sum runs over the rows that both sides reach only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch

# Masks along one side of a block of pairs, pixels of one step, programs that share one block's sum.
BLOCK_MASKS, BLOCK_PIXELS, SPLITS = 64, 128, 16
BLOCK_SCAN = 4096


@triton.jit
def _extent_kernel(masks, areas, firsts, lasts, num_pixels, BLOCK: tl.constexpr):
    """Area, first and last pixel of one mask; program i does mask i.

    An empty mask has first = P and last = -1.
    """
    row = tl.program_id(0)
    base = masks + row.to(tl.int64) * num_pixels
    area = tl.zeros([BLOCK], tl.int32)
    first = tl.full([BLOCK], num_pixels, tl.int32)
    last = tl.full([BLOCK], -1, tl.int32)
    for start in range(0, num_pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        is_set = tl.load(base + pixel, mask=pixel < num_pixels, other=0).to(tl.int32)
        area += is_set
        first = tl.minimum(first, tl.where(is_set > 0, pixel, num_pixels))
        last = tl.maximum(last, tl.where(is_set > 0, pixel, -1))
    # Old interpreters keep such sums in 64 bits, and store them all; compiled, this is no work.
    tl.store(areas + row, tl.sum(area, axis=0).to(tl.int64).to(tl.int32))
    tl.store(firsts + row, tl.min(first, axis=0))
    tl.store(lasts + row, tl.max(last, axis=0))


@triton.jit
def _overlap_kernel(
    masks, order, groups, firsts, lasts, overlaps, num_masks, num_pixels,
    SPLITS: tl.constexpr, BLOCK_MASKS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """overlaps[i, j] += sum_p masks[i, p] * masks[j, p] for i < j of one group.

    Program (r, c, s) takes the r-th and c-th block of sorted masks, r <= c, and the s-th part of
    the pixels that both reach. 0/1 bytes are multiplied and summed up in int32, so nothing rounds.
    """
    if tl.program_id(0) > tl.program_id(1):
        return
    side = tl.arange(0, BLOCK_MASKS)
    rank_r = tl.program_id(0) * BLOCK_MASKS + side
    rank_c = tl.program_id(1) * BLOCK_MASKS + side
    in_r, in_c = rank_r < num_masks, rank_c < num_masks
    r = tl.load(order + rank_r, mask=in_r, other=0)  # int64, like all offsets made of it
    c = tl.load(order + rank_c, mask=in_c, other=0)
    group_r = tl.load(groups + r, mask=in_r, other=-1)
    group_c = tl.load(groups + c, mask=in_c, other=-2)
    if tl.max(group_r, axis=0) < tl.min(tl.where(in_c, group_c, 1 << 62), axis=0):
        return
    first_r = tl.min(tl.load(firsts + r, mask=in_r, other=num_pixels), axis=0)
    first_c = tl.min(tl.load(firsts + c, mask=in_c, other=num_pixels), axis=0)
    last_r = tl.max(tl.load(lasts + r, mask=in_r, other=-1), axis=0)
    last_c = tl.max(tl.load(lasts + c, mask=in_c, other=-1), axis=0)
    begin = tl.maximum(first_r, first_c) // BLOCK_PIXELS  # in steps
    steps = tl.minimum(last_r, last_c) // BLOCK_PIXELS + 1 - begin
    if steps <= 0:
        return
    split = tl.program_id(2)
    part = tl.cdiv(steps, SPLITS)
    step = tl.arange(0, BLOCK_PIXELS)
    total = tl.zeros([BLOCK_MASKS, BLOCK_MASKS], tl.int32)
    for k in range(begin + split * part, begin + tl.minimum(steps, (split + 1) * part)):
        pixel = k * BLOCK_PIXELS + step
        in_p = pixel < num_pixels
        left = masks + r[:, None] * num_pixels + pixel[None, :]
        right = masks + c[None, :] * num_pixels + pixel[:, None]
        a = tl.load(left, mask=in_r[:, None] & in_p[None, :], other=0)
        b = tl.load(right, mask=in_c[None, :] & in_p[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    is_pair = (group_r[:, None] == group_c[None, :]) & (rank_r[:, None] < rank_c[None, :])
    upper = tl.minimum(r[:, None], c[None, :]) * num_masks + tl.maximum(r[:, None], c[None, :])
    tl.atomic_add(overlaps + upper, total, mask=is_pair & (total > 0), sem="relaxed")


def mask_overlaps_triton(masks: Tensor, groups: Tensor) -> Tensor:
    """Pixels that masks have in common with later masks of their group.

    Args:
        masks: (M, H, W) bool, at most 2^31 - 2^12 pixels each.
        groups: (M,) int64, at least 0.

    Returns:
        (M, M) int32: areas on the diagonal, intersections above it, 0 elsewhere.
    """
    num_masks, num_pixels = len(masks), masks.shape[1] * masks.shape[2]
    overlaps = masks.new_zeros(num_masks, num_masks, dtype=torch.int32)
    if num_masks == 0 or num_pixels == 0:
        return overlaps
    pixels = masks.contiguous().view(torch.int8)
    groups = groups.contiguous()
    areas, firsts, lasts = masks.new_empty(3, num_masks, dtype=torch.int32)
    launch(_extent_kernel, (num_masks,), pixels, areas, firsts, lasts, num_pixels, BLOCK=BLOCK_SCAN)
    # Twice the middle is at most 2^32, so the group decides first.
    order = (groups * (1 << 33) + firsts + lasts).argsort()
    blocks = triton.cdiv(num_masks, BLOCK_MASKS)
    launch(
        _overlap_kernel, (blocks, blocks, SPLITS),
        pixels, order, groups, firsts, lasts, overlaps, num_masks, num_pixels,
        SPLITS=SPLITS, BLOCK_MASKS=BLOCK_MASKS, BLOCK_PIXELS=BLOCK_PIXELS, num_stages=4,
    )  # fmt: skip
    overlaps.diagonal().copy_(areas)
    return overlaps
