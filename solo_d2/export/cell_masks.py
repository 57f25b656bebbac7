"""Masks of chosen cells of a batch, with sizes that do not depend on the data.

`MaskDecoder.masks` takes the cells of one image and of one level at a time; how many these are
depends on the image, which a graph of fixed shapes cannot express. Here M cells of each image come
from any levels. They are made from the heads' own factors.

B images, S grid side, T cells of all levels, M chosen cells, E channels, D kernel length, h w rows
and columns of the masks at the finest mask stride.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.modeling.heads.base import SOLOHeadBase
from solo_d2.ops.mask_factors import MaskFactor, kernel_side, resize
from solo_d2.structures import GridCells


def cell_masks(head: SOLOHeadBase[Any], outputs: Any, cells: Tensor, cell_levels: Tensor) -> Tensor:
    """Make the masks of cells.

    Args:
        head: with factors.
        outputs: what it predicts.
        cells: (B, M) int64 in [0, T).
        cell_levels: (T,) int64, the level of each cell.

    Returns:
        (B, M, h, w) float32 probabilities.
    """
    batch, num = cells.shape
    image = torch.arange(batch, device=cells.device)[:, None].expand(batch, num).flatten()
    # Of each group all M masks are made from the nearest cells of the group, and those of the
    # group's own cells are taken.
    starts = [0, *accumulate(side**2 for side in head.num_grids)]
    first_levels = [head.mask_groups.index(group) for group in sorted(set(head.mask_groups))]
    ends = [starts[level] for level in first_levels[1:]] + [starts[-1]]
    factors = []
    for group, (level, end) in enumerate(zip(first_levels, ends, strict=True)):
        index = cells.clamp(starts[level], end - 1) if len(ends) > 1 else cells
        of_group = head.mask_factors(outputs, image, GridCells(index.flatten(), group))
        factors.append(cast(Sequence[MaskFactor], of_group))
    strides = [head.mask_strides[level] for level in first_levels]
    sizes = [outputs.mask_size if stride > min(strides) else None for stride in strides]
    groups = torch.tensor(head.mask_groups, device=cells.device)[cell_levels][cells]
    probs = []
    for of_groups in zip(*factors, strict=True):  # the same factor of each group
        combine = _take_maps if of_groups[0].takes_maps else _convolve_maps
        probs.append(combine(of_groups, groups, sizes))
    return reduce(torch.mul, probs)


def _convolve_maps(
    factors: Sequence[MaskFactor], groups: Tensor, sizes: Sequence[tuple[int, int] | None]
) -> Tensor:
    """All masks by each group's maps; of each the one of its cell's group is taken."""
    masks: Tensor | None = None
    for group, (factor, size) in enumerate(zip(factors, sizes, strict=True)):
        logits = dynamic_conv_batch(factor.kernels.view(*groups.shape, -1), factor.maps).float()
        if factor.bias is not None:
            logits = logits + factor.bias.float().view(*groups.shape, 1, 1)
        probs = logits.sigmoid()
        probs = probs if size is None else resize(probs, size)
        is_own = (groups == group)[..., None, None]
        masks = probs if masks is None else torch.where(is_own, probs, masks)
    return cast(Tensor, masks)


def _take_maps(
    factors: Sequence[MaskFactor], groups: Tensor, sizes: Sequence[tuple[int, int] | None]
) -> Tensor:
    """There are few maps (S for each level), so all are resized, then those of the cells taken."""
    maps: list[Tensor] = []
    index, start = torch.zeros_like(groups), 0
    for group, (factor, size) in enumerate(zip(factors, sizes, strict=True)):
        probs = factor.maps.float().sigmoid()
        maps.append(probs if size is None else resize(probs, size))
        index = torch.where(groups == group, factor.kernels.view(groups.shape) + start, index)
        start += factor.maps.shape[1]
    return take(torch.cat(maps, dim=1), index)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Choose entries (B, M) int64 in [0, N) of values (B, N, *): (B, M, *), by one gather."""
    batch, num = values.shape[:2]
    start = torch.arange(batch, device=index.device)[:, None] * num
    chosen = values.flatten(0, 1).index_select(0, (index + start).flatten())
    return chosen.view(batch, index.shape[1], *values.shape[2:])


def dynamic_conv_batch(kernels: Tensor, feature: Tensor) -> Tensor:
    """`dynamic_conv` for several images: a product for each position of the kernels.

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
