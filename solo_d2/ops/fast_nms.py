"""Fast NMS on masks (YOLACT, arXiv:1904.02689, section 3.3): removed masks suppress others too."""

from functools import partial

from torch import Tensor

from solo_d2.ops.mask_iou import MaskRows, iou_rows
from solo_d2.ops.nms_family import run_nms


def fast_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    thresh: float = 0.5,
    class_agnostic: bool = False,
    backend: str = "auto",
    areas: Tensor | None = None,
    rows: MaskRows | None = None,
) -> Tensor:
    """Remove each mask that overlaps a better one of its class, even if that one is removed.

    Args:
        masks: (M, H, W) bool, best first. A mask without pixels overlaps nothing.
        labels: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1], non-increasing. Of two equal ones the earlier is better.
        thresh: a mask is removed if the IoU is strictly larger.
        class_agnostic: whether masks of different classes suppress each other too.
        backend: "auto" by device, "torch", "tiled" or "triton" (see `solo_d2.ops.mask_iou`).
        areas: (M,) pixels of each mask, integers or float; None: counted from the masks.
        rows: selection of M of `masks`, which then are (N, H, W); None: all in order.

    Returns:
        (M,) float32: the score, or 0 where removed; (0,) for no masks.
    """
    nms = partial(_fast_nms, thresh=thresh)
    return run_nms(nms, masks, labels, scores, class_agnostic, backend, areas, rows)


def _fast_nms(
    overlaps: Tensor, scores: Tensor, num_pixels: int, backend: str, *, thresh: float
) -> Tensor:
    if backend == "triton":
        from solo_d2.ops.triton.nms_decay import worst_iou_triton

        worst = worst_iou_triton(overlaps, num_pixels)
    else:
        worst = iou_rows(overlaps, 0, len(overlaps), num_pixels).amax(dim=0)
    return scores * (worst <= thresh)
