"""Class probabilities, point NMS and threshold, as keys for a top-k.

    p[t, k]   = sigmoid(logits[k, t])
    p         = 0 if the neighbor above, left or both has more, or p is not above the threshold
    key[t, k] = bits of p, then the index from the end, so that all keys differ

Shape letters: T cells of all levels, K classes, S side of a level's grid, L levels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch

# (cell, class) pairs of one program.
BLOCK = 512
# Bits per grid side in the integer that encodes all of them: Triton 3.2 can't index a constant
# tuple.
SIDE_BITS = 16


@triton.jit
def _probs(logits, cell, is_there, num_cells):
    """Probabilities of existing neighbors; else 0, which suppresses nothing."""
    return tl.sigmoid(tl.load(logits + cell, mask=is_there, other=-float("inf")).to(tl.float32))


@triton.jit
def _class_scores_kernel(
    logits, keys, num_cells, num_classes, thresh,
    SIDES: tl.constexpr, NUM_LEVELS: tl.constexpr, SIDE_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK keys.

    `logits` (K, T), `keys` (T * K) int64. SIDES encodes the L grid sides in SIDE_BITS bits each,
    the first one lowest.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_cells * num_classes
    cell, label = place // num_classes, place % num_classes
    start, side = tl.zeros([BLOCK], tl.int32), tl.full([BLOCK], 1, tl.int32)
    first = 0
    for level in tl.static_range(NUM_LEVELS):
        side_of_level = (SIDES >> (level * SIDE_BITS)) & ((1 << SIDE_BITS) - 1)
        start = tl.where(cell >= first, first, start)
        side = tl.where(cell >= first, side_of_level, side)
        first += side_of_level * side_of_level
    row, column = (cell - start) // side, (cell - start) % side
    base = logits + label * num_cells
    own = _probs(base, cell, inside, num_cells)
    left = _probs(base, cell - 1, inside & (column > 0), num_cells)
    above = _probs(base, cell - side, inside & (row > 0), num_cells)
    corner = _probs(base, cell - side - 1, inside & (row > 0) & (column > 0), num_cells)
    # Comparisons with NaN are false, so NaN cells and their neighbors are no candidates.
    is_best = (left <= own) & (above <= own) & (corner <= own) & (own > thresh)
    bits = tl.where(is_best, own, 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    key = (bits << 32) + (num_cells * num_classes - 1 - place)
    tl.store(keys + place, key, mask=inside)


def class_scores_triton(logits: Tensor, sides: tuple[int, ...], thresh: float) -> Tensor:
    """Launch the kernel.

    Args:
        logits: (K, T) of an image, contiguous, float32 or half precision.
        sides: S of each level.
        thresh: minimum probability, exclusive.

    Returns:
        (T * K) int64 keys.
    """
    num_classes, num_cells = logits.shape
    keys = torch.empty(num_cells * num_classes, dtype=torch.int64, device=logits.device)
    launch(
        _class_scores_kernel, (triton.cdiv(len(keys), BLOCK),),
        logits, keys, num_cells, num_classes, float(thresh),
        SIDES=sum(side << (level * SIDE_BITS) for level, side in enumerate(sides)),
        NUM_LEVELS=len(sides), SIDE_BITS=SIDE_BITS, BLOCK=BLOCK,
    )  # fmt: skip
    return keys
