"""Hard (greedy) NMS on masks, the baseline of SOLOv2's table 3c."""

from torch import Tensor

from solo_d2.ops.mask_iou import mask_iou


def hard_nms(masks: Tensor, labels: Tensor, scores: Tensor, *, thresh: float = 0.5) -> Tensor:
    """Remove each mask that overlaps a kept better one of its class.

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], not increasing. Of two equal ones the earlier is better.
        thresh: a mask is removed when the IoU is strictly larger.

    Returns:
        (M,) float32: the score, or 0 where removed; (0,) for no masks.
    """
    same_class = labels[:, None] == labels[None, :]
    removes = ((mask_iou(masks) > thresh) & same_class).triu(diagonal=1)
    keep = scores.new_ones(len(scores), dtype=removes.dtype)
    for i in range(len(scores)):  # greedy by nature, but the flags stay on the device
        keep &= ~(removes[i] & keep[i])
    return scores * keep
