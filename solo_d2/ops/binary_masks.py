"""Binary masks, their areas and their soft sums in one pass (SOLOv2, section 2.1).

Soft sum divided by area is the maskness, the mean probability over a mask's pixels. Float masks
exist for one tile at a time only.

Shape letters: M masks, J parts of the image, E channels of the mask feature, H W rows and columns.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.mask_factors import dynamic_conv
from solo_d2.ops.threads import in_threads

# Float32 elements of a thread's tile of probabilities (4 MiB, and as much for its foreground): the
# tile stays in the cache from the product to the sums.
TILE_ELEMENTS = 1 << 20
# Float32 elements of the masks that the reference computes at once.
CHUNK_ELEMENTS = 1 << 24
# Products with fewer columns are slow.
LEAST_TILE_COLUMNS = 512


class BinaryMasks(NamedTuple):
    """Masks, with the partial sums over J parts of the image that their scores need.

    Attributes:
        masks: (M, H, W) bool.
        areas: (M, J) int32 or int64, pixels of each mask.
        soft_sums: (M, J) float32, sum of the probabilities over the mask's pixels.
    """

    masks: Tensor
    areas: Tensor
    soft_sums: Tensor


def binarize_chunks(
    chunks: Iterable[Tensor],
    shape: tuple[int, int, int],
    thresh: float,
    device: torch.device,
    *,
    backend: str = "auto",
) -> BinaryMasks:
    """Threshold soft masks, given in chunks.

    Args:
        chunks: (M', H, W) float32 in [0, 1] each, M masks in total.
        shape: M, H and W.
        thresh: a pixel is set above this probability.
        device: device of the masks.
        backend: one of `solo_d2.ops.backends.BACKENDS`.
    """
    if choose_backend(backend, device) == "triton":
        from solo_d2.ops.triton.binary_masks import binarize_chunks_triton

        return BinaryMasks(*binarize_chunks_triton(chunks, shape, thresh, device))
    masks = zero_masks(shape, device)
    areas = torch.zeros(shape[0], 1, dtype=torch.int64, device=device)
    soft_sums = torch.zeros(shape[0], 1, device=device)
    start = 0
    for probs in chunks:
        chunk = slice(start, start + len(probs))
        parts = BinaryMasks(masks[chunk], areas[chunk, 0], soft_sums[chunk, 0])
        _binarize_probs(probs, thresh, out=parts)
        start += len(probs)
    return BinaryMasks(masks, areas, soft_sums)


def binarize_product(
    kernels: Tensor, feature: Tensor, thresh: float, *, backend: str = "auto"
) -> BinaryMasks:
    """Compute the masks sigmoid(kernels @ feature) and threshold them.

    Args:
        kernels: (M, E) float; M may be 0.
        feature: (E, H, W) float.
        thresh: a pixel is set above this probability.
        backend: "torch" computes chunks of whole float masks (the reference; 64 MiB for each of
            three steps, or one mask if that is more); "tiled" computes a tile of pixels of all
            masks at a time (8 MiB per thread besides the result, or 4 KiB per mask if that is
            more); "triton" never writes float masks. "auto" is "tiled" on the CPU and "triton" on a
            GPU, or "torch" if that cannot run.

    Returns:
        The masks, computed in float32 even under autocast.
    """
    backend = choose_backend(backend, feature.device)
    if backend == "triton":
        from solo_d2.ops.triton.dynamic_masks import dynamic_masks_triton

        return BinaryMasks(*dynamic_masks_triton(kernels, feature, thresh))
    with torch.autocast(feature.device.type, enabled=False):
        if backend == "torch":
            return _binarize_product_torch(kernels, feature, thresh)
        return _binarize_product_tiled(kernels, feature, thresh)


def _binarize_probs(probs: Tensor, thresh: float, out: BinaryMasks) -> None:
    """Threshold the probabilities (M, *) of some pixels; overwrite masks, add to (M,) sums."""
    # Comparing into floats and converting them is much faster than comparing into bool.
    foreground = torch.gt(probs, thresh, out=torch.empty_like(probs))
    out.masks.copy_(foreground)
    out.areas.add_(foreground.flatten(1).sum(dim=1).long())
    out.soft_sums.add_(foreground.mul_(probs).flatten(1).sum(dim=1))


def _binarize_product_torch(kernels: Tensor, feature: Tensor, thresh: float) -> BinaryMasks:
    """Compute by definition, in chunks of masks."""
    feature, parts = feature.float(), []
    for part in kernels.float().split(max(1, CHUNK_ELEMENTS // max(feature[0].numel(), 1))):
        probs = dynamic_conv(part, feature).sigmoid()
        masks = probs > thresh
        parts.append((masks, masks.sum(dim=(1, 2)), (probs * masks).sum(dim=(1, 2))))
    masks, areas, soft_sums = (torch.cat(each) for each in zip(*parts, strict=True))
    return BinaryMasks(masks, areas[:, None], soft_sums[:, None])


def _binarize_product_tiled(kernels: Tensor, feature: Tensor, thresh: float) -> BinaryMasks:
    """Compute a tile of pixels of all masks at a time: one read of the feature, no float masks."""
    kernels = kernels.float()
    num, pixels = len(kernels), feature.flatten(1)
    masks = zero_masks((num, *feature.shape[1:]), feature.device)
    columns = max(LEAST_TILE_COLUMNS, TILE_ELEMENTS // max(num, 1))
    tiles = range(0, pixels.shape[1] if num else 0, columns)
    # One sum per tile, so that results do not depend on the threads.
    areas = torch.zeros(num, len(tiles), dtype=torch.int64, device=feature.device)
    soft_sums = torch.zeros(num, len(tiles), device=feature.device)
    jobs = iter(tiles)

    def work() -> None:
        buffer = kernels.new_empty(num * min(columns, pixels.shape[1]))
        for start in jobs:
            tile, part = pixels[:, start : start + columns].float(), start // columns
            probs = buffer[: num * tile.shape[1]].view(num, -1)
            torch.mm(kernels, tile, out=probs).sigmoid_()
            binary = masks.flatten(1)[:, start : start + columns]
            _binarize_probs(probs, thresh, BinaryMasks(binary, areas[:, part], soft_sums[:, part]))

    in_threads(work)
    return BinaryMasks(masks, areas, soft_sums)


def mask_scores(
    areas: Tensor,
    soft_sums: Tensor,
    class_scores: Tensor,
    least_areas: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Multiply class scores by the maskness, the mean probability over the mask's pixels.

    Args:
        areas: (M, J) as in `BinaryMasks`.
        soft_sums: (M, J) as in `BinaryMasks`.
        class_scores: (M,) float32 in [0, 1].
        least_areas: (M,) float32, minimum area in pixels, exclusive.
        backend: one of `solo_d2.ops.backends.BACKENDS`.

    Returns:
        (M,) float32 in [0, 1], 0 for small masks and masks with NaN pixels; and, with "triton", the
        spans of the masks (`solo_d2.ops.mask_iou.MaskRows`), else None.
    """
    if choose_backend(backend, areas.device) == "triton":
        from solo_d2.ops.triton.mask_scores import mask_scores_triton

        return mask_scores_triton(areas, soft_sums, class_scores, least_areas)
    total = areas.sum(dim=1)
    scores = class_scores * (soft_sums.sum(dim=1) / total.clamp(min=1))
    is_instance = (total > least_areas) & (scores > 0)  # NaN is not above 0
    return scores.masked_fill(~is_instance, 0), None


def zero_masks(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return (*shape) bool masks that are False everywhere; host memory is allocated lazily.

    Torch's host allocator returns memory in pages of 4 KiB, and the first access to a page costs
    more than the computation that follows. NumPy requests huge pages, and its zeros cost nothing
    until they are accessed.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=torch.bool, device=device)
    return torch.from_numpy(np.zeros(tuple(shape), dtype=np.bool_))
