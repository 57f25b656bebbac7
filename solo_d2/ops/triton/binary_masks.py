"""Masks thresholded in registers, and the sums that their scores need.

    masks[m, q]     = p[m, q] > thresh
    areas[m, j]     = number of q in block j with masks[m, q]
    soft_sums[m, j] = sum of p[m, q] over these q; NaN if any p[m, q] is

The blocks are summed later, in a fixed order. Shape letters: M masks, P pixels, J blocks of pixels.
"""

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch

# Pixels of one program, and its masks if probabilities are given.
BLOCK_PIXELS, BLOCK_MASKS = 128, 32
# Pixels that a thread stores at once. Rows of masks are padded to whole words and their length is
# passed in words, so that the compiler knows their alignment.
WORD = 16


@triton.jit
def store_masks(
    probs, row, pixel, masks, areas, soft_sums, num_masks, size, num_pixels, thresh,
):  # fmt: skip
    """Threshold and sum a block of probabilities, which are 0 outside the image."""
    is_mask = row < num_masks
    is_set = (probs > thresh) & (pixel < num_pixels)[None, :]
    where = masks + row[:, None].to(tl.int64) * size + pixel[None, :]
    tl.store(where, is_set.to(tl.uint8), mask=is_mask[:, None] & (pixel < size)[None, :])
    block = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    # Old interpreters keep such sums in 64 bits and store all of them; compiled, this is a no-op.
    area = tl.sum(is_set.to(tl.int32), axis=1).to(tl.int64).to(tl.int32)
    tl.store(areas + block, area, mask=is_mask)
    # A product rather than a selection, so that one NaN pixel makes the sum NaN.
    soft_sum = tl.sum(probs * is_set.to(tl.float32), axis=1)
    tl.store(soft_sums + block, soft_sum, mask=is_mask)


@triton.jit(
    do_not_specialize=["num_masks", "row_words", "num_pixels"],
    do_not_specialize_on_alignment=["probs", "areas", "soft_sums"],
)
def _binarize_kernel(
    probs, masks, areas, soft_sums, num_masks, row_words, num_pixels, thresh,
    WORD: tl.constexpr, BLOCK_MASKS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """Program (i, j) handles the i-th block of masks in the j-th block of pixels."""
    row = tl.program_id(0) * BLOCK_MASKS + tl.arange(0, BLOCK_MASKS)
    pixel = tl.program_id(1) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    values = tl.load(
        probs + row[:, None].to(tl.int64) * num_pixels + pixel[None, :],
        mask=(row < num_masks)[:, None] & (pixel < num_pixels)[None, :],
        other=0.0,
    )
    size = row_words * WORD
    store_masks(
        values, row, pixel, masks, areas, soft_sums, num_masks, size, num_pixels, thresh
    )  # fmt: skip


def new_masks(num: int, num_pixels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate masks in whole words, areas and soft sums."""
    size, blocks = triton.cdiv(num_pixels, WORD) * WORD, triton.cdiv(num_pixels, BLOCK_PIXELS)
    masks = torch.empty(num, size, dtype=torch.bool, device=device)
    areas = torch.empty(num, blocks, dtype=torch.int32, device=device)
    return masks, areas, torch.empty(num, blocks, device=device)


def binarize_chunks_triton(
    chunks: Iterable[Tensor], shape: tuple[int, int, int], thresh: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold probabilities.

    Args:
        chunks: (M', H, W) float32 each, M masks in total.
        shape: M, H and W.
        thresh: a pixel is set above this probability.
        device: device of the masks.

    Returns:
        (M, H, W) bool, areas (M, J) int32, soft sums (M, J) float32.
    """
    num_masks, height, width = shape
    num_pixels = height * width
    masks, areas, soft_sums = new_masks(num_masks, num_pixels, device)
    start = 0
    for probs in chunks:
        out = [x[start : start + len(probs)] for x in (masks.view(torch.uint8), areas, soft_sums)]
        if probs.numel():
            launch(
                _binarize_kernel, (triton.cdiv(len(probs), BLOCK_MASKS), areas.shape[1]),
                probs.contiguous(), *out,
                len(probs), masks.shape[1] // WORD, num_pixels, float(thresh),
                WORD=WORD, BLOCK_MASKS=BLOCK_MASKS, BLOCK_PIXELS=BLOCK_PIXELS,
            )  # fmt: skip
        start += len(probs)
    return masks[:, :num_pixels].unflatten(1, (height, width)), areas, soft_sums
