"""Which mask of one set is which of another, by their overlap.

Shape letters: N masks of one set, M of the other, H and W rows and columns.
"""

import torch
from torch import Tensor

from solo_d2.ops.mask_iou import mask_iou


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
