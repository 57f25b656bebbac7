"""Target assignment, shared by all heads (SOLO, arXiv:1912.04488, section 3.3.1).

An instance is assigned to each level whose scale range contains sqrt(w * h) of its box. On that
level it claims the cells that its center region touches: a smaller copy of the box around the mass
center, limited to the 3x3 cells around the center's cell. Claimed cells are positive. All steps are
vectorized over instances and levels and run on the device of the masks, except for one transfer of
counts, marked below.

N: instances of the whole batch, L: levels, T: cells of all levels, P: mask samples, C = N * L * 9:
possible claims.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from solo_d2.ops.contours import contour_masks
from solo_d2.ops.mask_geometry import downsample_masks, mask_centers
from solo_d2.structures import GridTargets

CELL_CONFLICTS = ("all", "last", "nearest")
MASK_TARGETS = ("mask", "contour")


def assign_grid_targets(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    mask_strides: Sequence[int],
    num_classes: int,
    center_scale: float = 0.2,
    cell_conflict: str = "all",
    mask_target: str = "mask",
) -> GridTargets:
    """Assign the instances of a batch to grid cells.

    Args:
        boxes: for each image (N_i, 4) float32, XYXY in pixels of the network's input.
        classes: for each image (N_i,) int64 in [0, K).
        masks: for each image (N_i, H_i, W_i) bool, at the size of the image without padding.
            Empty masks are ignored.
        padded_size: height and width of the padded batch, which the grids divide.
        num_grids: grid side S of each level.
        scale_ranges: minimum and maximum scale of each level in pixels, both inclusive.
        mask_strides: stride of the predicted masks of each level.
        num_classes: K, which also denotes background.
        center_scale: size of the center region relative to the box.
        cell_conflict: which instance gets a cell that several claim. "all": each keeps its mask
            sample and the last one gives the class (SOLOv2 as published); "last": the last one
            alone (SOLO and Decoupled SOLO as published); "nearest": the one whose mass center is
            nearest to the cell's center; ties go to the smaller, then to the earlier instance.
        mask_target: "mask", or "contour": the contours of the downsampled masks (section 6). The
            assignment uses the masks in both cases.

    Returns:
        The targets, with samples ordered by image, level, instance, row, column.
    """
    if mask_target not in MASK_TARGETS:
        raise ValueError(f"unknown mask target {mask_target!r}: choose {MASK_TARGETS}")
    centers, areas = (torch.cat(x) for x in zip(*map(mask_centers, masks), strict=True))
    targets = assign_cells(
        boxes,
        classes,
        centers,
        areas,
        padded_size=padded_size,
        num_grids=num_grids,
        scale_ranges=scale_ranges,
        num_classes=num_classes,
        center_scale=center_scale,
        cell_conflict=cell_conflict,
    )
    # Downsampled as part of the padded input: exact, as in WXinlong's data pipeline.
    downsampled = {}
    for stride in sorted(set(mask_strides)):
        size = (padded_size[0] // stride, padded_size[1] // stride)
        small = torch.cat([downsample_masks(m, stride, size) for m in masks])
        downsampled[stride] = contour_masks(small) if mask_target == "contour" else small
    return replace(targets, masks=downsampled)


def assign_cells(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    centers: Tensor,
    areas: Tensor,
    *,
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    num_classes: int,
    center_scale: float = 0.2,
    cell_conflict: str = "all",
) -> GridTargets:
    """Assign instances to cells like `assign_grid_targets`, without needing their masks.

    Takes the mass centers, (N, 2) float32, and areas, (N,) int64, of the masks in their place.
    `masks` of the targets is empty.
    """
    if cell_conflict not in CELL_CONFLICTS:
        raise ValueError(f"unknown cell conflict rule {cell_conflict!r}: choose {CELL_CONFLICTS}")
    device = classes[0].device
    batch, levels = len(classes), len(num_grids)
    image = _image_of_instance([len(c) for c in classes], device)
    cell, distance, claimed = _claim_cells(
        torch.cat(list(boxes)), centers, areas, padded_size, num_grids, scale_ranges, center_scale
    )
    claim = torch.arange(cell.numel(), device=device)
    instance, level = claim // (9 * levels), claim // 9 % levels
    cell, distance, claimed = cell.flatten(), distance.flatten(), claimed.flatten()

    # The rank of the best claim of each cell; invalid claims share an extra slot at the end.
    num_cells = sum(side * side for side in num_grids)
    slot = torch.where(claimed, image[instance] * num_cells + cell, batch * num_cells)
    order = _best_first(claim, distance, areas[instance], cell_conflict)
    rank = torch.empty_like(order).index_copy(0, order, claim)
    best = rank.new_full((batch * num_cells + 1,), len(claim))
    best = best.scatter_reduce(0, slot, rank, "amin")
    kept = claimed if cell_conflict == "all" else claimed & (best[slot] == rank)
    background = rank.new_full((1,), num_classes)
    class_of_rank = torch.cat([torch.cat(list(classes))[instance[order]], background])

    # The only device synchronization of a training step: tensor sizes below depend on the counts.
    group = torch.where(kept, image[instance] * levels + level, batch * levels)
    num_samples, num_positive, num_claims = _count(group, batch * levels, best[:-1], claimed)
    samples = group.argsort(stable=True)[: sum(num_samples)]
    return GridTargets(
        classes=class_of_rank[best[:-1]].view(batch, num_cells),
        cells=cell[samples],
        instances=instance[samples],
        num_samples=tuple(tuple(num_samples[i * levels : (i + 1) * levels]) for i in range(batch)),
        masks={},
        num_positive_cells=num_positive,
        num_conflicts=num_claims - num_positive,
    )


def _best_first(claim: Tensor, distance: Tensor, area: Tensor, cell_conflict: str) -> Tensor:
    """(C,) int64: the claims, by descending priority."""
    if cell_conflict in ("all", "last"):
        return claim.flip(0)  # the last instance gives the class
    order = area.argsort(stable=True)
    return order[distance[order].argsort(stable=True)]


def _count(
    group: Tensor, num_groups: int, best: Tensor, claimed: Tensor
) -> tuple[list[int], int, int]:
    """Number of samples per group, of positive cells and of claims, in one transfer to the host."""
    per_group = group.new_zeros(num_groups + 1).index_add(0, group, torch.ones_like(group))
    num_positive = (best < len(claimed)).sum()
    counts = torch.cat([per_group, num_positive[None], claimed.sum()[None]]).tolist()
    return counts[:num_groups], counts[-2], counts[-1]


def _image_of_instance(num_instances: Sequence[int], device: torch.device) -> Tensor:
    """(N,) int64: the image of each instance."""
    image = [i for i, count in enumerate(num_instances) for _ in range(count)]
    return _to_device(image, torch.int64, device)


def _to_device(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.tensor(numbers, device=device)` without its synchronization."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _claim_cells(
    boxes: Tensor,
    centers: Tensor,
    areas: Tensor,
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    center_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find all possible claims: the 3x3 cells around each instance's mass center on each level.

    Returns:
        (N, L, 9) int64 cells, (N, L, 9) float32 squared distances in pixels from the mass center to
        the cell's center, and (N, L, 9) bool, which claims are valid.
    """
    device = boxes.device
    side = _to_device(num_grids, torch.int64, device)
    ranges = _to_device(scale_ranges, torch.float32, device)
    # As (x, y) pairs: (N, 1, 2) against (L, 1).
    size = _to_device([padded_size[1], padded_size[0]], torch.float32, device)
    extent = boxes[:, 2:] - boxes[:, :2]
    half = (0.5 * extent * center_scale)[:, None]
    center = centers[:, None]
    lowest = _cell_of(center - half, size, side).clamp(min=0)
    highest = torch.minimum(_cell_of(center + half, size, side), side[:, None] - 1)
    middle = _cell_of(center, size, side)

    scale = extent.clamp(min=0).prod(dim=1).sqrt()[:, None]
    in_range = (scale >= ranges[:, 0]) & (scale <= ranges[:, 1]) & (areas > 0)[:, None]
    step = torch.arange(-1, 2, device=device)
    x, y = (middle[..., None] + step).unbind(dim=2)  # (N, L, 3) columns and rows
    inside = (middle[..., None] + step >= lowest[..., None]) & (
        middle[..., None] + step <= highest[..., None]
    )
    inside_x, inside_y = inside.unbind(dim=2)
    starts = [0, *accumulate(s * s for s in num_grids)][:-1]
    offset = _to_device(starts, torch.int64, device)
    cell = offset[:, None, None] + y[..., :, None] * side[:, None, None] + x[..., None, :]
    claimed = in_range[..., None, None] & inside_y[..., :, None] & inside_x[..., None, :]
    pitch = size / side[:, None]  # (L, 2) width and height of a cell
    dx = (x + 0.5) * pitch[:, :1] - center[..., :1]
    dy = (y + 0.5) * pitch[:, 1:] - center[..., 1:]
    distance = dy.square()[..., :, None] + dx.square()[..., None, :]
    return cell.flatten(2), distance.flatten(2), claimed.flatten(2)


def _cell_of(point: Tensor, size: Tensor, side: Tensor) -> Tensor:
    """Return the column and row of the cell that contains a point.

    As in the published models, divide (floor, float32) by the rounded 1 / S instead of multiplying
    by S, which puts many points that lie exactly on a boundary into the lower cell.

    Args:
        point: (N, 1, 2) float32, x and y in pixels.
        size: (2,) float32, width and height of the padded input.
        side: (L,) int64.

    Returns:
        (N, L, 2) int64, column and row, possibly outside the grid.
    """
    pitch = (1 / side.double()).float()[:, None]
    return torch.div(point / size, pitch, rounding_mode="floor").long()
