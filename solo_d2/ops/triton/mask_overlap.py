"""Areas and intersections of binary masks on tensor cores, as exact integers.

Shape letters: M masks, P pixels of a mask.

Masks are sorted by group, then by position, so that a block of neighbors covers few groups and few
rows of the image. A block of pairs is skipped if the groups differ, and sums run only over the rows
that both sides reach. Sums are stored by rank, which is cheap to address, and moved to the original
order afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.triton.launch import launch

# Masks along one side of a block of pairs, and pixels of one step.
BLOCK_MASKS, BLOCK_PIXELS = 128, 64
# Programs that fill a device, and the minimum steps of programs that share a block of pairs.
PROGRAMS, LEAST_STEPS = 512, 8
# Pixels of one step of the scan; rows and columns of a block when sums are moved.
BLOCK_SCAN, BLOCK_ROWS, BLOCK_COLUMNS = 4096, 16, 128
# Bytes that a thread loads at once. Rows of masks are padded to whole words and their length is
# passed in words, so that the compiler knows their alignment.
WORD = 16


@triton.jit(
    do_not_specialize=["row_words", "num_pixels"],
    do_not_specialize_on_alignment=["groups", "index", "known_spans"],
)
def _extent_kernel(
    masks, index, known_spans, groups, spans, keys, row_words, num_pixels,
    WORD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the first and last pixel of mask index[i] and its sort key; one program per mask.

    If `index` is None the mask is i; if `known_spans` is None its pixels are scanned.
    key = 2^33 group + first + last, or 2^63 - 1 for an empty mask (last = -1).
    """
    i, size = tl.program_id(0), row_words * WORD
    row = i.to(tl.int64)
    if index is not None:
        row = tl.load(index + i)
    if known_spans is not None:
        top, bottom = tl.load(known_spans + row * 2), tl.load(known_spans + row * 2 + 1)
    else:
        first = tl.full([BLOCK], num_pixels, tl.int32)
        last = tl.full([BLOCK], -1, tl.int32)
        for start in range(0, size, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            is_set = tl.load(masks + row * size + pixel, mask=pixel < size, other=0) > 0
            first = tl.minimum(first, tl.where(is_set, pixel, num_pixels))
            last = tl.maximum(last, tl.where(is_set, pixel, -1))
        top, bottom = tl.min(first, axis=0), tl.max(last, axis=0)
    tl.store(spans + i * 2, top)
    tl.store(spans + i * 2 + 1, bottom)
    # Twice the middle is at most 2^32, so the group decides first.
    key = (tl.load(groups + i) << 33) + top.to(tl.int64) + bottom.to(tl.int64)
    tl.store(keys + i, tl.where(bottom < 0, (1 << 63) - 1, key))


@triton.jit
def _split_columns(tile, ROWS: tl.constexpr, HALF: tl.constexpr):
    """Split a tile (ROWS, 2 HALF) into its left and right half."""
    return tile.reshape(ROWS, 2, HALF).permute(0, 2, 1).split()


@triton.jit
def _add_halves(where, counts, ROWS: tl.constexpr, HALF: tl.constexpr):
    """Add counts (ROWS, 2 HALF) to memory; `where` (ROWS, HALF) points to their left half."""
    left, right = _split_columns(counts, ROWS, HALF)
    tl.atomic_add(where, left, mask=left > 0, sem="relaxed")
    tl.atomic_add(where + HALF, right, mask=right > 0, sem="relaxed")


@triton.jit(
    do_not_specialize=["num_masks", "row_words"],
    do_not_specialize_on_alignment=["groups", "index"],
)
def _overlap_kernel(
    masks, index, order, groups, spans, sums, num_masks, row_words,
    WORD: tl.constexpr, BLOCK_MASKS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """sums[r, c] += sum_p masks[row[r], p] * masks[row[c], p] for r <= c of one group.

    row[r] = index[order[r]], or order[r] if `index` is None.

    Program (i, j, s) handles the i-th and j-th block of sorted masks, i <= j, and the s-th part of
    the pixels that both reach. 0/1 bytes are multiplied and summed in int32, without rounding.
    Other elements of `sums`, which has whole blocks, are undefined.
    """
    if tl.program_id(0) > tl.program_id(1):
        return
    size, side = row_words * WORD, tl.arange(0, BLOCK_MASKS)
    rank_r = tl.program_id(0) * BLOCK_MASKS + side
    rank_c = tl.program_id(1) * BLOCK_MASKS + side
    in_r, in_c = rank_r < num_masks, rank_c < num_masks
    r = tl.load(order + rank_r, mask=in_r, other=0)  # int64, like the offsets made of it
    c = tl.load(order + rank_c, mask=in_c, other=0)
    last_group = tl.max(tl.load(groups + r, mask=in_r, other=-1), axis=0)
    if last_group < tl.min(tl.load(groups + c, mask=in_c, other=1 << 62), axis=0):
        return
    first_r = tl.min(tl.load(spans + r * 2, mask=in_r, other=size), axis=0)
    first_c = tl.min(tl.load(spans + c * 2, mask=in_c, other=size), axis=0)
    last_r = tl.max(tl.load(spans + r * 2 + 1, mask=in_r, other=-1), axis=0)
    last_c = tl.max(tl.load(spans + c * 2 + 1, mask=in_c, other=-1), axis=0)
    begin = tl.maximum(first_r, first_c) // BLOCK_PIXELS  # in steps
    steps = tl.minimum(last_r, last_c) // BLOCK_PIXELS + 1 - begin
    if steps <= 0:
        return
    part, split = tl.cdiv(steps, tl.num_programs(2)), tl.program_id(2)
    if index is not None:
        r, c = tl.load(index + r, mask=in_r, other=0), tl.load(index + c, mask=in_c, other=0)
    left, right = masks + r[:, None] * size, masks + c[None, :] * size
    total = tl.zeros([BLOCK_MASKS, BLOCK_MASKS], tl.int32)
    for k in range(begin + split * part, begin + tl.minimum(steps, (split + 1) * part)):
        pixel = k * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        a = tl.load(left + pixel[None, :], mask=pixel[None, :] < size, other=0)
        b = tl.load(right + pixel[:, None], mask=pixel[:, None] < size, other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    # In four parts, since the addresses of all pairs exceed the registers.
    HALF: tl.constexpr = BLOCK_MASKS // 2
    stride = tl.num_programs(0).to(tl.int64) * BLOCK_MASKS
    corner = sums + tl.program_id(1) * BLOCK_MASKS + tl.arange(0, HALF // 2)
    where = corner[None, :] + rank_r[:, None] * stride
    left_sums, right_sums = _split_columns(total, BLOCK_MASKS, HALF)
    _add_halves(where, left_sums, BLOCK_MASKS, HALF // 2)
    _add_halves(where + HALF, right_sums, BLOCK_MASKS, HALF // 2)


@triton.jit(do_not_specialize=["num_masks", "stride"], do_not_specialize_on_alignment=["groups"])
def _unsort_kernel(
    sums, order, groups, overlaps, num_masks, stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """overlaps[i, j] = sums[rank of i, rank of j] if the groups are equal, else 0; for i <= j.

    Program (b, d) moves the b-th block of rows and the d-th block of columns.
    """
    rank_r = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    rank_c = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    in_r, in_c = rank_r < num_masks, rank_c < num_masks
    r = tl.load(order + rank_r, mask=in_r, other=0)
    c = tl.load(order + rank_c, mask=in_c, other=0)
    is_pair = (rank_r <= rank_c) & in_c
    is_equal = tl.load(groups + r) == tl.load(groups + c)
    count = tl.load(sums + rank_r.to(tl.int64) * stride + rank_c, mask=is_pair & is_equal, other=0)
    tl.store(overlaps + tl.minimum(r, c) * num_masks + tl.maximum(r, c), count, mask=is_pair)


def mask_overlaps_triton(
    masks: Tensor, groups: Tensor, index: Tensor | None = None, known_spans: Tensor | None = None
) -> Tensor:
    """Count the pixels that masks share with later masks of their group.

    Args:
        masks: (N, H, W) bool, at most 2^31 - 2^12 pixels each.
        groups: (M,) int64, in [0, 2^30).
        index: (M,) int64, selection of the masks; None: all in order, N = M.
        known_spans: (N, 2) int32, first and last pixel of each mask; None: computed.

    Returns:
        (M, M) int32: areas on the diagonal, intersections above it, 0 between groups. Values below
        the diagonal are undefined.
    """
    num_masks, num_pixels = len(groups), masks.shape[1] * masks.shape[2]
    if num_masks == 0 or num_pixels == 0:
        return masks.new_zeros(num_masks, num_masks, dtype=torch.int32)
    pixels = masks.flatten(1).contiguous().view(torch.int8)
    if num_pixels % WORD or pixels.data_ptr() % WORD:
        pixels = F.pad(pixels, (0, -num_pixels % WORD))
    groups, words = groups.contiguous(), pixels.shape[1] // WORD
    keys, spans = torch.empty_like(groups), groups.new_empty(num_masks, 2, dtype=torch.int32)
    launch(
        _extent_kernel, (num_masks,),
        pixels, index, known_spans, groups, spans, keys, words, num_pixels,
        WORD=WORD, BLOCK=BLOCK_SCAN,
    )  # fmt: skip
    order, blocks = keys.argsort(), triton.cdiv(num_masks, BLOCK_MASKS)
    size = blocks * BLOCK_MASKS
    sums = masks.new_zeros(size, size, dtype=torch.int32)
    splits = triton.cdiv(num_pixels, LEAST_STEPS * BLOCK_PIXELS)
    splits = max(1, min(splits, 2 * PROGRAMS // (blocks * (blocks + 1))))
    launch(
        _overlap_kernel, (blocks, blocks, splits),
        pixels, index, order, groups, spans, sums, num_masks, words,
        WORD=WORD, BLOCK_MASKS=BLOCK_MASKS, BLOCK_PIXELS=BLOCK_PIXELS, num_warps=4, num_stages=4,
    )  # fmt: skip
    overlaps = masks.new_empty(num_masks, num_masks, dtype=torch.int32)
    grid = (triton.cdiv(num_masks, BLOCK_ROWS), triton.cdiv(num_masks, BLOCK_COLUMNS))
    launch(
        _unsort_kernel, grid,
        sums, order, groups, overlaps, num_masks, size,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS,
    )  # fmt: skip
    return overlaps
