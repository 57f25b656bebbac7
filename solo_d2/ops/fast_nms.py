"""Fast NMS on masks (YOLACT, arXiv:1904.02689, section 3.3): removed masks remove others too."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.ops.nms_family import apply_nms, upper_iou


def fast_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    thresh: float = 0.5,
    class_agnostic: bool = False,
    num_per_image: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Remove each mask that overlaps any better one of its class, kept or not.

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], not increasing. Of two equal ones the earlier is better.
        thresh: a mask is removed when the IoU is strictly larger.
        class_agnostic: whether masks of different classes remove each other too.
        num_per_image: masks of each image where there are several, one after the other; each
            image's are best first. None for one image.
        backend: "auto" by device, "torch", "tiled" or "triton" (see `solo_d2.ops.mask_iou`).

    Returns:
        (M,) float32: the score, or 0 where removed; (0,) for no masks.
    """
    return apply_nms(
        partial(_fast_nms, thresh=thresh),
        masks,
        labels,
        scores,
        class_agnostic=class_agnostic,
        num_per_image=num_per_image,
        backend=backend,
    )


def _fast_nms(
    masks: Tensor, groups: Tensor, scores: Tensor, backend: str, *, thresh: float
) -> Tensor:
    if backend == "triton":
        from solo_d2.ops.triton.nms_decay import worst_iou_triton

        overlaps = mask_overlaps(masks, groups, backend=backend)
        worst = worst_iou_triton(overlaps, masks[0].numel())
    else:
        worst = upper_iou(masks, groups, backend).amax(dim=0)
    return scores * (worst <= thresh)
