"""Which cells may hold instances: class probabilities, and the candidates among them.

B images, L levels, S grid side, T cells of all levels, K classes, M candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from solo_d2.ops.point_nms import point_nms
from solo_d2.structures import Candidates, flatten_levels


def class_probabilities(class_logits: Sequence[Tensor]) -> Tensor:
    """(B, T, K) float32 class probabilities after point NMS, from L logits (B, K, S, S)."""
    return flatten_levels([point_nms(logits.float().sigmoid()) for logits in class_logits])


def filter_scores(class_probs: Tensor, thresh: float) -> Candidates:
    """Every (cell, class) above the threshold, in row-major order.

    Args:
        class_probs: (T, K) float32.
        thresh: least probability, exclusive.

    Returns:
        Candidates without masks. A cell may stand there with several classes.
    """
    cells, classes = (class_probs > thresh).nonzero(as_tuple=True)
    return Candidates(cells, classes, class_probs[cells, classes])


def top_scores(class_probs: Tensor, thresh: float, num: int) -> Candidates:
    """The best (cell, class) pairs, as many whatever the probabilities are.

    Args:
        class_probs: (T, K) float32.
        thresh: least probability of a candidate, exclusive.
        num: M, if there are as many pairs.

    Returns:
        min(num, T * K) candidates without masks by falling score; of equal scores the earlier in
        row-major order is first. What is not above the threshold (or NaN) has score 0.
    """
    num_classes = class_probs.shape[1]
    scores = class_probs.masked_fill(~(class_probs > thresh), 0).flatten()
    # The bits of floats rise with them. Below them stands the place from the end, so no two keys
    # are equal, and the order does not depend on how a device chooses among equal ones.
    place = torch.arange(len(scores) - 1, -1, -1, device=scores.device)
    keys = (scores.view(torch.int32).long() << 32) + place
    best, index = keys.topk(min(num, len(keys)))
    scores = (best >> 32).int().view(torch.float32)
    return Candidates(index // num_classes, index % num_classes, scores)
