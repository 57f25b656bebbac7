"""Point NMS: only the best of neighboring cells keeps its class score."""

from torch import Tensor
from torch.nn import functional as F


def point_nms(scores: Tensor) -> Tensor:
    """Zero the cells whose upper, left or upper-left neighbor has a higher score.

    As in the published SOLO code, the window is 2x2 and extends up and left only. Ties are kept.

    Args:
        scores: (B, K, H, W) probabilities, not logits: a suppressed cell becomes 0.

    Returns:
        (B, K, H, W), each value kept or 0.
    """
    best = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (best == scores)
