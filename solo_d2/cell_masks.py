"""Masks of chosen cells of any mask groups.

Cells are gathered by group, which waits for the device, since how many there are depends on the
image. With fixed shapes every group makes as many masks as cells are chosen instead, and each cell
takes that of its group. Factors that only choose among maps cost less: there are few maps, and all
of them are resized.

B images, S grid side, T cells of all levels, M chosen cells, E channels, D kernel length, h w rows
and columns of the masks at the finest mask stride.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.mask_factors import MaskFactor, kernel_side, multiply_factors, resize
from solo_d2.structures import GridCells, MaskHead


def cell_masks(
    head: MaskHead,
    outputs: Any,
    image: int,
    cells: Tensor,
    cell_levels: Tensor,
    *,
    fixed: bool = False,
) -> Tensor:
    """Make the masks of cells of an image.

    Args:
        head: what predicted the outputs.
        outputs: of a batch.
        image: index of the image.
        cells: (M,) int64 in [0, T).
        cell_levels: (T,) int64, the level of each cell.
        fixed: whether to do without a wait for the device. Ignored for a head of several mask
            groups and without factors.

    Returns:
        (M, h, w) float32 probabilities.
    """
    groups = head.mask_groups
    if len(set(groups)) == 1:
        return _group_masks(head, outputs, image, GridCells(cells))
    if fixed:
        probs = fixed_cell_masks(head, outputs, cells[None], image)
        if probs is not None:
            return probs[0]
    group_of_level = torch.tensor(groups, device=cells.device)
    group_of_cell = group_of_level[cell_levels[cells]]
    masks = torch.empty(len(cells), *outputs.mask_size, device=cells.device)
    for group in sorted(set(groups)):
        index = (group_of_cell == group).nonzero()[:, 0]
        if len(index):
            masks[index] = _group_masks(head, outputs, image, GridCells(cells[index], group))
    return masks


def _group_masks(head: MaskHead, outputs: Any, image: int, cells: GridCells) -> Tensor:
    """Masks (M, h, w) float32 of cells of one group."""
    factors, size = head.mask_factors(outputs, image, cells), outputs.mask_size
    if factors:
        return multiply_factors([f.of_image(image).to_float32() for f in factors], size)
    return resize(head.masks(outputs, image, cells)[None], size)[0].float()


def fixed_cell_masks(
    head: MaskHead, outputs: Any, cells: Tensor, image: int | None = None
) -> Tensor | None:
    """Make the masks of cells with sizes that do not depend on the data.

    Args:
        head: what predicted the outputs.
        outputs: of a batch.
        cells: (B, M) int64 in [0, T).
        image: None for all images of the batch; the index of the only one, then B is 1.

    Returns:
        (B, M, h, w) float32 probabilities; None if the head has no factors.
    """
    batch, num = cells.shape
    images: int | Tensor
    if image is None:
        images = torch.arange(batch, device=cells.device)[:, None].expand(batch, num).flatten()
    else:
        images = image
    sides = [logits.shape[-1] for logits in outputs.class_logits]
    starts = [sum(side * side for side in sides[:level]) for level in range(len(sides) + 1)]
    # Of each group all M masks are made from the nearest cells of the group, and those of the
    # group's own cells are taken.
    factors, firsts, sizes = [], [], []
    num_groups = len(set(head.mask_groups))
    for group in range(num_groups):
        level, num_levels = head.mask_groups.index(group), head.mask_groups.count(group)
        firsts.append(starts[level])
        last = starts[level + num_levels] - 1
        index = cells.clamp(firsts[-1], last) if num_groups > 1 else cells
        of_group = head.mask_factors(outputs, images, GridCells(index.flatten(), group))
        if not of_group:
            return None
        if image is not None:
            one = slice(image, image + 1)
            of_group = [x._replace(maps=x.maps[one]).to_float32() for x in of_group]
        factors.append(of_group)
        stride = head.mask_strides[level]
        sizes.append(outputs.mask_size if stride > min(head.mask_strides) else None)
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
    """All masks by each group's maps; of each the one of its cell's group is taken."""
    masks: Tensor | None = None
    for factor, first, size in zip(factors, firsts, sizes, strict=True):
        logits = dynamic_conv_batch(factor.kernels.view(*cells.shape, -1), factor.maps).float()
        if factor.bias is not None:
            logits = logits + factor.bias.float().view(*cells.shape, 1, 1)
        probs = logits.sigmoid()
        probs = probs if size is None else resize(probs, size)
        # Groups come in the order of their cells, so the last one that fits is the cell's own.
        fits = (cells >= first)[..., None, None]
        masks = probs if masks is None else torch.where(fits, probs, masks)
    return cast(Tensor, masks)


def _take_maps(
    factors: Sequence[MaskFactor],
    cells: Tensor,
    firsts: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
) -> Tensor:
    """There are few maps (S for each level), so all are resized, then those of the cells taken."""
    maps: list[Tensor] = []
    index, start = torch.zeros_like(cells), 0
    for factor, first, size in zip(factors, firsts, sizes, strict=True):
        probs = factor.maps.float().sigmoid()
        maps.append(probs if size is None else resize(probs, size))
        index = torch.where(cells >= first, factor.kernels.view(cells.shape) + start, index)
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
