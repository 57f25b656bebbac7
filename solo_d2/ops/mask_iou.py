"""Overlaps of binary masks, exact on every device, by every backend and under autocast; matching.

Shape letters: M masks, H and W rows and columns.

Pixels are counted in integers, or in float32 over few enough pixels that it counts exactly, so the
backends differ in speed alone:

- "torch": one product of all masks, float32 on the CPU (the reference), 8-bit integers on a GPU
  that multiplies them.
- "tiled": cuts the image into tiles and multiplies, in 8-bit integers where the processor has a
  fast product for them, only the masks that reach into the tile. Masks are blobs, so most reach
  into few tiles. The CPU path.
- "triton": tensor cores, see solo_d2/ops/triton/mask_overlap.py. The CUDA path.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.threads import one_thread

# Largest masks in pixels: areas are int32, and so is the end of a kernel's last step.
MAX_PIXELS = 2**31 - 2**12
# float32 counts exactly so far; the half precision of autocast does not.
FLOAT32_COUNTS = 1 << 24
# Most elements of masks that the reference holds at once (128 MiB as float32).
CHUNK_ELEMENTS = 1 << 25
# What rows and columns of an 8-bit product are filled up to a multiple of: cuBLAS refuses others.
INT8_MULTIPLES = {"cuda": (32, 16)}
# Rows and columns of a tile, and the pixels that are looked at and copied as one word.
TILE_ROWS, TILE_COLUMNS, WORD = 40, 64, 8


class MaskRows(NamedTuple):
    """Some masks of a larger set (N, H, W), which need not be copied.

    Attributes:
        indices: (M,) int64 in [0, N), not checked on CUDA.
        spans: (N, 2) int32, two pixels from and to which each mask reaches at most, in row-major
            order; of masks that overlap nothing the second is -1. None: unknown.
    """

    indices: Tensor
    spans: Tensor | None = None


def mask_iou(masks: Tensor, *, backend: str = "auto") -> Tensor:
    """Intersection over union of all pairs of masks.

    Args:
        masks: (M, H, W) bool.
        backend: one of `solo_d2.ops.backends.BACKENDS`.

    Returns:
        (M, M) float32, symmetric; 0 where both masks are empty, so never NaN.
    """
    groups = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    overlaps = mask_overlaps(masks, groups, backend=backend)
    upper = iou_rows(overlaps, 0, len(masks), masks[0:1].numel())
    own = (overlaps.diagonal() > 0).float()
    return upper + upper.T + own.diag()


def pairwise_mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each mask of one set with each of another.

    Args:
        a: (N, H, W) bool.
        b: (M, H, W) bool, on the same device.

    Returns:
        (N, M) float32; 0 where both masks are empty.
    """
    return mask_iou(torch.cat([a, b]))[: len(a), len(a) :]


def match_pairs(similarity: Tensor, least: float) -> list[tuple[int, int]]:
    """Pair rows with columns, the best pairs first, each at most once.

    Args:
        similarity: (N, M) float32.
        least: pairs of less are none; above 0.

    Returns:
        (row, column) of each pair, best first; of equal ones that of the earlier row, then column.
    """
    values = similarity.flatten().cpu()
    order = values.argsort(descending=True, stable=True)
    order = order[values[order] >= least]
    pairs: list[tuple[int, int]] = []
    rows: set[int] = set()
    columns: set[int] = set()
    for position in order.tolist():
        row, column = divmod(position, similarity.shape[1])
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def mask_overlaps(
    masks: Tensor, groups: Tensor, *, rows: MaskRows | None = None, backend: str = "auto"
) -> Tensor:
    """Pixels that masks have in common with later masks of their group.

    Args:
        masks: (M, H, W) bool, at most `MAX_PIXELS` pixels each.
        groups: (M,) int64; masks of different groups are not compared.
        rows: which of `masks`, then (N, H, W), are meant; None: all in order.
        backend: one of `solo_d2.ops.backends.BACKENDS`.

    Returns:
        (M, M) int32: the areas on the diagonal, intersections above it, 0 between groups. What is
        below the diagonal has no meaning.
    """
    backend = choose_backend(backend, masks.device)
    num_pixels = masks.shape[1] * masks.shape[2]
    if num_pixels > MAX_PIXELS:
        raise ValueError(f"masks of {num_pixels} pixels: at most {MAX_PIXELS} can be counted")
    if backend == "triton":
        from solo_d2.ops.triton.mask_overlap import mask_overlaps_triton

        return mask_overlaps_triton(masks, groups, *(rows or ()))
    if rows is not None:
        masks = masks.index_select(0, rows.indices)
    if backend == "torch":
        overlaps = _overlaps_torch(masks)
    else:
        with one_thread():
            overlaps = _overlaps_tiled(masks)
    return overlaps.masked_fill_(groups[:, None] != groups[None, :], 0)


def iou_rows(overlaps: Tensor, start: int, stop: int, num_pixels: int) -> Tensor:
    """IoU of some masks with all later masks of their group.

    The quotient is the float32 number next to the true one. Up to 2^23 pixels float32 holds every
    count and every sum of two areas exactly, and the division rounds once; beyond, float64 does.

    Args:
        overlaps: what `mask_overlaps` returns.
        start: first row wanted.
        stop: end of the rows wanted, exclusive.
        num_pixels: H * W.

    Returns:
        (stop - start, M - start) float32: row r, column c is the IoU of the masks start + r and
        start + c where c > r, and 0 elsewhere.
    """
    dtype = torch.float32 if 2 * num_pixels <= FLOAT32_COUNTS else torch.float64
    area = overlaps.diagonal()[start:].to(dtype)
    shared = overlaps[start:stop, start:].to(dtype).triu_(diagonal=1)
    union = (area[: stop - start, None] + area[None, :]).sub_(shared).clamp_(min=1)
    return shared.div_(union).float()


def _overlaps_torch(masks: Tensor) -> Tensor:
    """`mask_overlaps` of one group, some pixels at a time."""
    num_masks = len(masks)
    flat = masks.flatten(1)
    result = torch.zeros(num_masks, num_masks, dtype=torch.int32, device=masks.device)
    step = max(16, min(FLOAT32_COUNTS, CHUNK_ELEMENTS // max(num_masks, 1)) // 16 * 16)
    count = _count_in_float32 if masks.device.type == "cpu" else _count_pairs
    for part in flat.split(step, dim=1) if flat.numel() else ():
        result += count(part.view(torch.int8))
    return result


def _overlaps_tiled(masks: Tensor) -> Tensor:
    """`mask_overlaps` of one group, tile by tile, on one thread (see `one_thread`).

    Beside the result (4 bytes a pair) it holds the masks' bytes in one tile and, where W is no
    multiple of 8 or the masks are strided, one padded copy of the masks.
    """
    num_masks = len(masks)
    result = torch.zeros(num_masks, num_masks, dtype=torch.int32, device=masks.device)
    if masks.numel() == 0:
        return result
    step = TILE_COLUMNS // WORD
    for band in _as_words(masks).split(TILE_ROWS, dim=1):
        # A word of 0/1 bytes is positive where any of its pixels is set.
        columns = band.amax(dim=1)
        for start in range(0, columns.shape[1], step):
            tile = band[:, :, start : start + step]
            reached = columns[:, start : start + step].amax(dim=1).nonzero()[:, 0]
            if 2 * len(reached) > num_masks:  # choosing would cost more than it saves
                result += _count_words(tile)
            elif len(reached) > 0:
                pairs = reached[:, None] * num_masks + reached
                counts = _count_words(tile.index_select(0, reached))
                result.view(-1).index_add_(0, pairs.view(-1), counts.view(-1))
    return result


def _as_words(masks: Tensor) -> Tensor:
    """(M, H, ceil(W / 8)) int64 of 8 pixels each, a view where W is a multiple of 8."""
    width = masks.shape[2]
    if width % WORD:
        # What the rows are filled up with are pixels that no mask has.
        masks = torch.nn.functional.pad(masks.view(torch.uint8), (0, WORD - width % WORD))
    masks = masks.contiguous()
    if masks.storage_offset() % WORD:
        masks = masks.clone()
    return masks.view(torch.int64)


def _count_words(words: Tensor) -> Tensor:
    """(M, M) int32: pixels in common of (M, rows, columns) int64 words of 8 pixels."""
    return _count_pairs(words.flatten(1).contiguous().view(torch.int8))


def _count_pairs(pixels: Tensor) -> Tensor:
    """(M, M) int32: pixels in common of (M, P) int8, P at most `FLOAT32_COUNTS`."""
    if not has_fast_int8_product(pixels.device):
        return _count_in_float32(pixels)
    num, count = pixels.shape
    rows, columns = INT8_MULTIPLES.get(pixels.device.type, (1, 1))
    if num % rows or count % columns:
        pixels = F.pad(pixels, (0, -count % columns, 0, -num % rows))
    pixels = pixels.contiguous()
    return torch._int_mm(pixels, pixels.T)[:num, :num]


def _count_in_float32(pixels: Tensor) -> Tensor:
    """`_count_pairs` by a product that every device has."""
    # 0 and 1 survive any rounding of the inputs (TF32), and float32 sums them up exactly.
    with torch.autocast(pixels.device.type, enabled=False):
        floats = pixels.float()
        counts: Tensor = floats @ floats.T
        return counts.int()


@lru_cache
def has_fast_int8_product(device: torch.device) -> bool:
    """Whether `torch._int_mm` beats float32: the processor has instructions, torch uses them."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (7, 5)
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )
