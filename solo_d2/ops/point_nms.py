"""Point NMS: of neighbouring cells only the best keeps its class score."""

from torch import Tensor
from torch.nn import functional as F


def point_nms(scores: Tensor) -> Tensor:
    """Zero the cells that are beaten by their upper, left or upper-left neighbour.

    As in the published SOLO code: the window is 2x2 and reaches up and left only. Equal cells
    survive together.

    Args:
        scores: (B, K, H, W) probabilities, not logits: a suppressed cell becomes 0.

    Returns:
        (B, K, H, W), each value kept or 0.
    """
    best = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (best == scores)
