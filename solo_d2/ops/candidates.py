"""Class probabilities of cells, and selection of candidates.

B images, L levels, S grid side, T cells of all levels, K classes, M candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.point_nms import point_nms


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate the cells of all levels.

    Args:
        maps: L tensors (B, C, S, S).

    Returns:
        (B, T, C), not contiguous.
    """
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


def class_probabilities(class_logits: Sequence[Tensor]) -> Tensor:
    """Compute (B, T, K) float32 probabilities after point NMS from L logits (B, K, S, S)."""
    return flatten_levels([point_nms(logits.float().sigmoid()) for logits in class_logits])


def filter_scores(class_probs: Tensor, thresh: float) -> tuple[Tensor, Tensor, Tensor]:
    """Select every (cell, class) above the threshold, in row-major order.

    Args:
        class_probs: (T, K) float32.
        thresh: minimum probability, exclusive.

    Returns:
        (M,) int64 cells, (M,) int64 classes, (M,) float32 scores. A cell may have several classes.
    """
    cells, classes = (class_probs > thresh).nonzero(as_tuple=True)
    return cells, classes, class_probs[cells, classes]


def score_keys(
    class_logits: Sequence[Tensor], thresh: float, *, backend: str = "auto"
) -> list[Tensor]:
    """Encode the scores of all (cell, class) pairs as distinct integers to sort by.

    The upper bits are those of the float score, which increase with it; the lower bits are the
    index counted from the end. Ties are thus resolved in the same way on every device.

    Args:
        class_logits: L logits (B, K, S, S).
        thresh: minimum probability of a candidate, exclusive; others (and NaN) have score 0.
        backend: one of `solo_d2.ops.backends.BACKENDS`.

    Returns:
        For each image (T * K,) int64 in row-major order.
    """
    if choose_backend(backend, class_logits[0].device) == "triton":
        from solo_d2.ops.triton.class_scores import class_scores_triton

        sides = tuple(logits.shape[-1] for logits in class_logits)
        of_cells = torch.cat([logits.flatten(2) for logits in class_logits], dim=2)
        return [class_scores_triton(logits, sides, thresh) for logits in of_cells]
    probs = class_probabilities(class_logits)
    scores = probs.masked_fill(~(probs > thresh), 0).flatten(1)
    place = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    return list((scores.view(torch.int32).long() << 32) + place)


def top_scores(keys: Tensor, num_classes: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select a fixed number of the best (cell, class) pairs.

    Args:
        keys: (T * K,) int64, the keys of an image from `score_keys`.
        num_classes: K.
        num: number of pairs, limited to T * K.

    Returns:
        (M,) int64 cells, (M,) int64 classes, (M,) float32 scores, by descending score; ties in
        row-major order. Pairs with score 0 are no candidates.
    """
    best, index = keys.topk(min(num, len(keys)))
    scores = (best >> 32).int().view(torch.float32)
    return index // num_classes, index % num_classes, scores
