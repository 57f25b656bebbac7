"""Grids and scale ranges that fit the object sizes of a data set.

The rules follow the published models (SOLO, arXiv:1912.04488, section 4); for COCO they yield the
published grids and ranges.

- **Scale ranges**: each level spans two octaves and shares one with each neighbour, [1, 2b],
  [b, 4b], [2b, 8b], ... The base b is chosen such that the largest tenth of the objects reaches the
  last level, between 3 and 12 times the stride of the second level (3.5 to 6 in the published
  models): smaller objects have too few feature pixels, larger ones leave the finer levels unused.
- **Grids**: of objects with the same centre cell only one is predicted. A level gets the smallest
  grid, not below the config's, in which at most 6 % of its objects share their centre cell (on COCO
  5 % at the published grid of the finest level, 1 % at the others). If even one cell per feature
  pixel exceeds this, half a percentage point above that grid's share is accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray

from tools.dataset_check.objects import Objects, box_scales

LARGEST_SHARE = 0.1
LEAST_BASE, LARGEST_BASE = 3, 12
SHARED_LIMIT, SHARED_SLACK = 0.06, 0.005
# Step between grid sides; the published ones are multiples of it.
GRID_STEP = 4
# Upper bound of the last range, as published, unless an object is larger.
TOP = 2048
# Keep the config's ranges if the base differs by at most this factor.
TOLERANCE = 1.25


@dataclass(frozen=True)
class Levels:
    """Grid side and scale range of each level."""

    num_grids: list[int]
    scale_ranges: list[list[int]]

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "Levels":
        """Read MODEL.SOLO."""
        solo = cfg.MODEL.SOLO
        return cls(list(solo.NUM_GRIDS), [[int(x) for x in pair] for pair in solo.SCALE_RANGES])

    def counts(self, objects: Objects) -> list[tuple[int, float]]:
        """Return the number of objects of each level, and the share that share their cell."""
        objects, scales = with_scales(objects)
        result = []
        for side, (low, high) in zip(self.num_grids, self.scale_ranges, strict=True):
            inside = (scales >= low) & (scales <= high)
            result.append((int(inside.sum()), shared_cells(objects[inside], side)))
        return result


def with_scales(objects: Objects) -> tuple[Objects, NDArray[np.float32]]:
    """Return the objects inside their training images, and sqrt(w * h) of their boxes."""
    objects = objects[objects["area"] > 0]
    return objects, box_scales(torch.from_numpy(objects["box"].copy())).numpy()


def propose(
    objects: Objects, levels: Levels, strides: Sequence[int], *, keep_ranges: bool = False
) -> Levels | None:
    """Derive grids and scale ranges from objects at their training size.

    Args:
        objects: of the data set; those outside of their images do not count.
        levels: of the config.
        strides: of the features of the levels.
        keep_ranges: whether to keep the scale ranges of the config.

    Returns:
        The proposal, equal to the config where that fits; None without objects.
    """
    objects, scales = with_scales(objects)
    if len(objects) == 0:
        return None
    _, first = np.unique(objects["image"], return_index=True)
    short_side = float(np.median(objects["input"][first].min(axis=1)))
    ranges = levels.scale_ranges
    if not keep_ranges:
        ranges = propose_ranges(scales, ranges, strides)
    grids = []
    for side, (low, high), stride in zip(levels.num_grids, ranges, strides, strict=True):
        inside = (scales >= low) & (scales <= high)
        finest = max(side, int(short_side / stride) // GRID_STEP * GRID_STEP)
        grids.append(propose_grid(objects[inside], side, finest))
    return Levels(grids, ranges)


def propose_ranges(
    scales: NDArray[np.float32], current: Sequence[Sequence[int]], strides: Sequence[int]
) -> list[list[int]]:
    """Return scale ranges of L levels; the current ones if they cover all N objects."""
    levels = len(current)
    top = max(TOP, int(np.ceil(scales.max())))
    if levels == 1:
        return [[1, top]]
    wanted = float(np.quantile(scales, 1 - LARGEST_SHARE)) / 2 ** (levels - 2)
    base = round(min(max(wanted, LEAST_BASE * strides[1]), LARGEST_BASE * strides[1]))
    held = [(scales >= low) & (scales <= high) for low, high in current]
    ratio = current[1][0] / base
    if np.any(held, axis=0).all() and 1 / TOLERANCE <= ratio <= TOLERANCE:
        return [[int(low), int(high)] for low, high in current]
    ranges = [[base << level >> 1, base << level << 1] for level in range(levels)]
    ranges[0][0], ranges[-1][1] = 1, top
    return ranges


def propose_grid(objects: Objects, least: int, finest: int) -> int:
    """Return the smallest grid from `least` on with few enough shared centre cells."""
    if len(objects) == 0:
        return least
    limit = max(SHARED_LIMIT, shared_cells(objects, finest) + SHARED_SLACK)
    for side in range(least, finest, GRID_STEP):
        if shared_cells(objects, side) <= limit:
            return side
    return finest


def shared_cells(objects: Objects, side: int) -> float:
    """Return the share of objects whose centre cell of an S x S grid is already occupied.

    In [0, 1); NaN without objects.
    """
    if len(objects) == 0:
        return float("nan")
    centers = objects["center"] / objects["input"][:, ::-1]
    cells = np.floor(centers * side).astype(np.int64).clip(0, side - 1)
    distinct = np.unique(np.column_stack([objects["image"], cells]), axis=0)
    return 1 - len(distinct) / len(objects)
