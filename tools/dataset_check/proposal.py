"""Grids and scale ranges that fit the sizes of a data set's objects.

The published models (SOLO, arXiv:1912.04488, section 4) are the pattern; on COCO the result are
their grids and ranges.

- **Scale ranges** keep the published form: each level spans two octaves, of which it shares one
  with each neighbour, [1, 2b], [b, 4b], [2b, 8b], ... Only the base b is chosen: a tenth of the
  objects, the largest, is to reach the last level. b stays between 3 and 12 times the stride of
  the second level (3.5 to 6 in the published models): smaller objects have too few feature pixels
  there, larger ones leave the finer levels without work.
- **Grids**: of objects whose mass centres fall into one cell only one is predicted. A level gets
  the smallest grid, not below the config's, in which at most 6 % of its objects have the
  centre cell of another one (on COCO's images 5 % do at the published grid of the finest level, 1 %
  at the others). Where even the finest grid, a cell for each pixel of the feature, does not reach
  that, half a percentage point more than in the finest is enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tools.dataset_check.objects import OUTSIDE, VANISHED, Objects

LARGEST_SHARE = 0.1
LEAST_BASE, LARGEST_BASE = 3, 12
SHARED_LIMIT, SHARED_SLACK = 0.06, 0.005
# Grids grow in steps of this; the published ones are multiples of it.
GRID_STEP = 4
# Upper end of the last range, as published, unless an object is larger.
TOP = 2048
# A base that differs by less is no reason to leave the config's ranges.
TOLERANCE = 1.25


@dataclass(frozen=True)
class Proposal:
    """Grids and ranges, and how they do beside the config's.

    Attributes:
        num_grids: grid side of each level.
        scale_ranges: of each level.
        shared_before: share of the objects of each level of the config that share their centre
            cell; NaN for a level without objects.
        shared_after: the same with the proposal.
        num_before: objects of each level of the config.
        num_after: the same with the proposal.
    """

    num_grids: list[int]
    scale_ranges: list[list[int]]
    shared_before: list[float]
    shared_after: list[float]
    num_before: list[int]
    num_after: list[int]

    def unchanged(
        self, num_grids: Sequence[int], scale_ranges: Sequence[Sequence[float]]
    ) -> "Proposal":
        """The config's own values in the place of the proposed ones."""
        return replace(
            self,
            num_grids=list(num_grids),
            scale_ranges=[[int(low), int(high)] for low, high in scale_ranges],
            shared_after=self.shared_before,
            num_after=self.num_before,
        )


def propose(
    objects: Objects,
    *,
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    strides: Sequence[int],
    short_side: float,
    keep_ranges: bool = False,
) -> Proposal | None:
    """Derive grids and scale ranges from objects at their size in training.

    Args:
        objects: of the data set; those that vanish do not count.
        num_grids: of the config.
        scale_ranges: of the config.
        strides: of the features that the levels see.
        short_side: of the network's input in pixels, which limits the grids.
        keep_ranges: whether the scale ranges stay those of the config.

    Returns:
        The proposal, equal to the config where that fits; None without objects.
    """
    there = ~np.isin(objects.outcomes, (VANISHED, OUTSIDE))
    images, scales, centers = objects.images[there], objects.scales[there], objects.centers[there]
    if len(scales) == 0:
        return None
    if keep_ranges:
        ranges = [[int(low), int(high)] for low, high in scale_ranges]
    else:
        ranges = propose_ranges(scales, scale_ranges, strides)
    grids, shared_after, num_after = [], [], []
    for side, (low, high), stride in zip(num_grids, ranges, strides, strict=True):
        inside = (scales >= low) & (scales <= high)
        finest = max(side, int(short_side / stride) // GRID_STEP * GRID_STEP)
        grids.append(propose_grid(images[inside], centers[inside], side, finest))
        shared_after.append(shared_cells(images[inside], centers[inside], grids[-1]))
        num_after.append(int(inside.sum()))
    before = [(scales >= low) & (scales <= high) for low, high in scale_ranges]
    return Proposal(
        num_grids=grids,
        scale_ranges=[list(pair) for pair in ranges],
        shared_before=[
            shared_cells(images[inside], centers[inside], side)
            for inside, side in zip(before, num_grids, strict=True)
        ],
        shared_after=shared_after,
        num_before=[int(inside.sum()) for inside in before],
        num_after=num_after,
    )


def propose_ranges(
    scales: NDArray[np.float32], current: Sequence[Sequence[float]], strides: Sequence[int]
) -> list[list[int]]:
    """The scale ranges of L levels; the current ones where they hold all objects and fit.

    Args:
        scales: (N,) of the objects, in pixels.
        current: ranges of the config.
        strides: of the levels.
    """
    levels = len(current)
    top = max(TOP, int(np.ceil(scales.max())))
    if levels == 1:
        return [[1, top]]
    stride = strides[1]
    wanted = float(np.quantile(scales, 1 - LARGEST_SHARE)) / 2 ** (levels - 2)
    base = round(min(max(wanted, LEAST_BASE * stride), LARGEST_BASE * stride))
    lower = [base * 2**level for level in range(levels - 1)]
    upper = [2 * low for low in lower]
    ranges = [[1, upper[0]], *([low, 2 * high] for low, high in zip(lower, upper, strict=True))]
    ranges[-1][1] = top
    if _fits(current, base, scales):
        return [[int(low), int(high)] for low, high in current]
    return ranges


def _fits(current: Sequence[Sequence[float]], base: float, scales: NDArray[np.float32]) -> bool:
    """Whether ranges hold all objects and their base is near enough."""
    ratio = current[1][0] / base
    holds = np.zeros(len(scales), bool)
    for low, high in current:
        holds |= (scales >= low) & (scales <= high)
    return bool(holds.all()) and 1 / TOLERANCE <= ratio <= TOLERANCE


def propose_grid(
    images: NDArray[np.int64], centers: NDArray[np.float32], least: int, finest: int
) -> int:
    """The smallest grid in which few enough objects share their centre cell.

    Args:
        images: (N,) index of each object's image.
        centers: (N, 2) mass centres in units of the input.
        least: grid to begin with.
        finest: grid to end with, at least `least`.
    """
    if len(images) == 0:
        return least
    limit = max(SHARED_LIMIT, shared_cells(images, centers, finest) + SHARED_SLACK)
    for side in range(least, finest, GRID_STEP):
        if shared_cells(images, centers, side) <= limit:
            return side
    return finest


def shared_cells(images: NDArray[np.int64], centers: NDArray[np.float32], side: int) -> float:
    """Share of objects whose centre cell of an S x S grid is that of an earlier one, too.

    Returns:
        In [0, 1); NaN without objects.
    """
    if len(images) == 0:
        return float("nan")
    cells = np.floor(centers * side).astype(np.int64).clip(0, side - 1)
    distinct = np.unique(np.column_stack([images, cells]), axis=0)
    return 1 - len(distinct) / len(images)
