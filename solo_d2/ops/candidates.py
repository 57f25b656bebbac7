"""Which cells may hold instances: class probabilities, and the candidates among them.

B images, L levels, S grid side, T cells of all levels, K classes, M candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.point_nms import point_nms


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Lay the cells of all levels one after another.

    Args:
        maps: L tensors (B, C, S, S).

    Returns:
        (B, T, C), not contiguous.
    """
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


def class_probabilities(class_logits: Sequence[Tensor]) -> Tensor:
    """(B, T, K) float32 class probabilities after point NMS, from L logits (B, K, S, S)."""
    return flatten_levels([point_nms(logits.float().sigmoid()) for logits in class_logits])


def filter_scores(class_probs: Tensor, thresh: float) -> tuple[Tensor, Tensor, Tensor]:
    """Every (cell, class) above the threshold, in row-major order.

    Args:
        class_probs: (T, K) float32.
        thresh: least probability, exclusive.

    Returns:
        (M,) int64 cells, (M,) int64 classes, (M,) float32 scores. A cell may have several classes.
    """
    cells, classes = (class_probs > thresh).nonzero(as_tuple=True)
    return cells, classes, class_probs[cells, classes]


def score_keys(
    class_logits: Sequence[Tensor], thresh: float, *, backend: str = "auto"
) -> list[Tensor]:
    """Scores of all (cell, class) as whole numbers of which no two are equal.

    The bits of floats rise with them. Below them stands the place from the end, so that the order
    does not depend on how a device chooses among equal scores.

    Args:
        class_logits: L logits (B, K, S, S).
        thresh: least probability of a candidate, exclusive; others (and NaN) have score 0.
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
    """The best (cell, class) pairs, as many whatever the scores are.

    Args:
        keys: (T * K,) int64, those of an image from `score_keys`.
        num_classes: K.
        num: M, if there are as many pairs.

    Returns:
        (M,) int64 cells, (M,) int64 classes, (M,) float32 scores, M = min(num, T * K), by falling
        score; of equal scores the earlier in row-major order is first. Those of score 0 are none.
    """
    best, index = keys.topk(min(num, len(keys)))
    scores = (best >> 32).int().view(torch.float32)
    return index // num_classes, index % num_classes, scores
