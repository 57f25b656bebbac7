"""Overlaps of binary masks, exact on every device, with every backend and under autocast; matching.

Shape letters: M masks, H W rows and columns.

Pixels are counted in integers, or in float32 over few enough pixels to be exact, so the backends
differ only in speed:

- "torch": one product of all masks, in float32 on the CPU (the reference), in 8-bit integers on
  GPUs that support it.
- "tiled": splits the image into tiles and multiplies only the masks with pixels in the tile, in
  8-bit integers where the processor has a fast product for them. Masks are blobs, so most of them
  are in few tiles. Used on the CPU.
- "triton": tensor cores, see solo_d2/ops/triton/mask_overlap.py. Used on CUDA.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.threads import one_thread

# Maximum pixels of a mask: areas are int32, and so is the end of a kernel's last step.
MAX_PIXELS = 2**31 - 2**12
# Largest count that float32 holds exactly; the half precision of autocast does not.
FLOAT32_COUNTS = 1 << 24
# Maximum elements of masks that the reference holds at once (128 MiB as float32).
CHUNK_ELEMENTS = 1 << 25
# cuBLAS requires multiples of these rows and columns for an 8-bit product.
INT8_MULTIPLES = {"cuda": (32, 16)}
# Rows and columns of a tile, and the pixels that are read as one word.
TILE_ROWS, TILE_COLUMNS, WORD = 40, 64, 8


class MaskRows(NamedTuple):
    """Selection of masks from a larger set (N, H, W), without a copy.

    Attributes:
        indices: (M,) int64 in [0, N), not checked on CUDA.
        spans: (N, 2) int32, first and last pixel, in row-major order, between which all pixels of
            each mask lie; the last is -1 for masks that overlap nothing. None: unknown.
    """

    indices: Tensor
    spans: Tensor | None = None


def mask_iou(masks: Tensor, *, backend: str = "auto") -> Tensor:
    """Compute the intersection over union of all pairs of masks.

    Args:
        masks: (M, H, W) bool.
        backend: one of `solo_d2.ops.backends.BACKENDS`.

    Returns:
        (M, M) float32, symmetric; 0 for two empty masks.
    """
    groups = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    overlaps = mask_overlaps(masks, groups, backend=backend)
    upper = iou_rows(overlaps, 0, len(masks), masks[0:1].numel())
    own = (overlaps.diagonal() > 0).float()
    return upper + upper.T + own.diag()


def pairwise_mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the IoU (N, M) float32 of two sets of masks, (N, H, W) and (M, H, W) bool."""
    return mask_iou(torch.cat([a, b]))[: len(a), len(a) :]


def match_pairs(similarity: Tensor, least: float) -> list[tuple[int, int]]:
    """Match rows with columns greedily, best pairs first, each at most once.

    Args:
        similarity: (N, M) float32.
        least: minimum similarity of a pair; above 0.

    Returns:
        (row, column) of each pair, best first; ties by row, then column.
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
    """Count the pixels that masks share with later masks of their group.

    Args:
        masks: (M, H, W) bool, at most `MAX_PIXELS` pixels each.
        groups: (M,) int64; masks of different groups are not compared.
        rows: selection of M of `masks`, which then are (N, H, W); None: all in order.
        backend: one of `solo_d2.ops.backends.BACKENDS`.

    Returns:
        (M, M) int32: areas on the diagonal, intersections above it, 0 between groups. Values below
        the diagonal are undefined.
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
    """Compute the IoU of masks with all later masks of their group.

    The result is the float32 number nearest to the exact quotient. Up to 2^23 pixels, float32 holds
    every count and sum of two areas exactly and the division rounds once; beyond, float64 is used.

    Args:
        overlaps: result of `mask_overlaps`.
        start: first row.
        stop: end of the rows, exclusive.
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
    """Compute `mask_overlaps` of one group, in chunks of pixels."""
    num_masks = len(masks)
    flat = masks.flatten(1)
    result = torch.zeros(num_masks, num_masks, dtype=torch.int32, device=masks.device)
    step = max(16, min(FLOAT32_COUNTS, CHUNK_ELEMENTS // max(num_masks, 1)) // 16 * 16)
    count = _count_in_float32 if masks.device.type == "cpu" else _count_pairs
    for part in flat.split(step, dim=1) if flat.numel() else ():
        result += count(part.view(torch.int8))
    return result


def _overlaps_tiled(masks: Tensor) -> Tensor:
    """Compute `mask_overlaps` of one group, tile by tile, on one thread (see `one_thread`).

    Besides the result, allocates one tile of the masks and, if W is not a multiple of 8 or the
    masks are strided, one padded copy of the masks.
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
            if 2 * len(reached) > num_masks:  # selecting would cost more than it saves
                result += _count_words(tile)
            elif len(reached) > 0:
                pairs = reached[:, None] * num_masks + reached
                counts = _count_words(tile.index_select(0, reached))
                result.view(-1).index_add_(0, pairs.view(-1), counts.view(-1))
    return result


def _as_words(masks: Tensor) -> Tensor:
    """View masks as (M, H, ceil(W / 8)) int64 of 8 pixels each; copies if W needs padding."""
    if masks.shape[2] % WORD:
        masks = F.pad(masks.view(torch.uint8), (0, -masks.shape[2] % WORD))
    masks = masks.contiguous()
    if masks.storage_offset() % WORD:
        masks = masks.clone()
    return masks.view(torch.int64)


def _count_words(words: Tensor) -> Tensor:
    """Count common pixels, (M, M) int32, of (M, rows, columns) int64 words of 8 pixels."""
    return _count_pairs(words.flatten(1).contiguous().view(torch.int8))


def _count_pairs(pixels: Tensor) -> Tensor:
    """Count common pixels, (M, M) int32, of (M, P) int8, P at most `FLOAT32_COUNTS`."""
    if not has_fast_int8_product(pixels.device):
        return _count_in_float32(pixels)
    num, count = pixels.shape
    rows, columns = INT8_MULTIPLES.get(pixels.device.type, (1, 1))
    if num % rows or count % columns:
        pixels = F.pad(pixels, (0, -count % columns, 0, -num % rows))
    pixels = pixels.contiguous()
    return torch._int_mm(pixels, pixels.T)[:num, :num]


def _count_in_float32(pixels: Tensor) -> Tensor:
    """Compute `_count_pairs` by a float32 product."""
    # 0 and 1 survive any rounding of the inputs (TF32), and float32 sums them exactly.
    with torch.autocast(pixels.device.type, enabled=False):
        floats = pixels.float()
        counts: Tensor = floats @ floats.T
        return counts.int()


@lru_cache
def has_fast_int8_product(device: torch.device) -> bool:
    """Return whether `torch._int_mm` is faster than float32 on this device."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (7, 5)
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )
