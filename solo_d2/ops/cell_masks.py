"""Masks of selected cells of all mask groups, in shapes that do not depend on the data.

Gathering cells by group synchronizes with the device, since their number depends on the image.
Here every group computes masks for all selected cells, and each cell uses the mask of its group.

B images, S grid side, T cells of all levels, M selected cells, E channels, D kernel length, h w
rows and columns of the masks at the finest mask stride.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.mask_factors import MaskFactor, kernel_side, resize

# Maps an image index (or the image of each cell), (P,) int64 cells and their mask group to the
# factors of their masks, with the maps of the whole batch; None if the head has none.
FactorsOf = Callable[[int | Tensor, Tensor, int], Sequence[MaskFactor] | None]


def fixed_cell_masks(
    factors_of: FactorsOf,
    cells: Tensor,
    *,
    sides: Sequence[int],
    mask_groups: Sequence[int],
    mask_strides: Sequence[int],
    mask_size: tuple[int, int],
    image: int | None = None,
) -> Tensor | None:
    """Compute the masks of selected cells.

    Args:
        factors_of: returns the factors of selected cells.
        cells: (B, M) int64 in [0, T).
        sides: S of each level.
        mask_groups: mask group of each level, non-decreasing.
        mask_strides: mask stride of each level.
        mask_size: h and w.
        image: index of a single image, with B = 1; None: all images of the batch.

    Returns:
        (B, M, h, w) float32 probabilities; None if there are no factors.
    """
    batch, num = cells.shape
    images: int | Tensor
    if image is None:
        images = torch.arange(batch, device=cells.device)[:, None].expand(batch, num).flatten()
    else:
        images = image
    starts = [sum(side * side for side in sides[:level]) for level in range(len(sides) + 1)]
    # Each group computes M masks, for cells of other groups from its nearest cell; these masks are
    # discarded afterwards.
    factors, firsts, sizes = [], [], []
    num_groups = len(set(mask_groups))
    for group in range(num_groups):
        level, num_levels = mask_groups.index(group), mask_groups.count(group)
        firsts.append(starts[level])
        last = starts[level + num_levels] - 1
        index = cells.clamp(firsts[-1], last) if num_groups > 1 else cells
        of_group = factors_of(images, index.flatten(), group)
        if not of_group:
            return None
        if image is not None:
            one = slice(image, image + 1)
            of_group = [x._replace(maps=x.maps[one]).to_float32() for x in of_group]
        factors.append(of_group)
        sizes.append(mask_size if mask_strides[level] > min(mask_strides) else None)
    probs = []
    for of_groups in zip(*factors, strict=True):  # the same factor of each group
        combine = _take_maps if of_groups[0].takes_maps else _convolve_maps
        probs.append(combine(of_groups, cells, firsts, sizes))
    return reduce(torch.mul, probs)


def _convolve_maps(
    factors: Sequence[MaskFactor],
    cells: Tensor,
    firsts: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
) -> Tensor:
    """Compute all masks from the maps of each group; keep those of each cell's group."""
    masks: Tensor | None = None
    for factor, first, size in zip(factors, firsts, sizes, strict=True):
        logits = dynamic_conv_batch(factor.kernels.view(*cells.shape, -1), factor.maps).float()
        if factor.bias is not None:
            logits = logits + factor.bias.float().view(*cells.shape, 1, 1)
        probs = logits.sigmoid()
        probs = probs if size is None else resize(probs, size)
        # Groups are in the order of their cells, so the last one that fits is the cell's own.
        fits = (cells >= first)[..., None, None]
        masks = probs if masks is None else torch.where(fits, probs, masks)
    return cast(Tensor, masks)


def _take_maps(
    factors: Sequence[MaskFactor],
    cells: Tensor,
    firsts: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
) -> Tensor:
    """Resize all maps (few: S for each level), then select those of the cells."""
    maps: list[Tensor] = []
    index, start = torch.zeros_like(cells), 0
    for factor, first, size in zip(factors, firsts, sizes, strict=True):
        probs = factor.maps.float().sigmoid()
        maps.append(probs if size is None else resize(probs, size))
        index = torch.where(cells >= first, factor.kernels.view(cells.shape) + start, index)
        start += factor.maps.shape[1]
    return take(torch.cat(maps, dim=1), index)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Select entries `index` (B, M) int64 in [0, N) of `values` (B, N, *): (B, M, *)."""
    batch, num = values.shape[:2]
    start = torch.arange(batch, device=index.device)[:, None] * num
    chosen = values.flatten(0, 1).index_select(0, (index + start).flatten())
    return chosen.view(batch, index.shape[1], *values.shape[2:])


def dynamic_conv_batch(kernels: Tensor, feature: Tensor) -> Tensor:
    """Apply `dynamic_conv` to several images, by one product per kernel position.

    Args:
        kernels: (B, M, D), D = side^2 * E, in the order channel, row, column.
        feature: (B, E, H, W).

    Returns:
        (B, M, H, W) logits.
    """
    batch, num = kernels.shape[:2]
    channels, height, width = feature.shape[1:]
    side = kernel_side(kernels, channels)
    weight = kernels.view(batch, num, channels, side, side)
    padded = F.pad(feature, [side // 2] * 4) if side > 1 else feature
    logits: Tensor | None = None
    for row in range(side):
        for column in range(side):
            window = padded[:, :, row : row + height, column : column + width].flatten(2)
            part = weight[:, :, :, row, column] @ window
            logits = part if logits is None else logits + part
    return cast(Tensor, logits).view(batch, num, height, width)
