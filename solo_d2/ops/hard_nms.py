"""Hard (greedy) NMS on masks, the baseline of SOLOv2's table 3c."""

from functools import partial

import torch
from torch import Tensor

from solo_d2.ops.mask_iou import MaskRows, iou_rows
from solo_d2.ops.nms_family import run_nms


def hard_nms(
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
    """Remove each mask that overlaps a better one of its class that is kept.

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
    nms = partial(_hard_nms, thresh=thresh)
    return run_nms(nms, masks, labels, scores, class_agnostic, backend, areas, rows)


def _hard_nms(
    overlaps: Tensor, scores: Tensor, num_pixels: int, backend: str, *, thresh: float
) -> Tensor:
    if backend == "triton":
        from solo_d2.ops.triton.nms_greedy import hard_nms_triton

        return hard_nms_triton(overlaps, scores, num_pixels, thresh=thresh)
    # Sequential, so it runs on the host: one device synchronization instead of M launches.
    removes = (iou_rows(overlaps, 0, len(overlaps), num_pixels) > thresh).cpu()
    keep = torch.ones(len(removes), dtype=torch.bool)
    for i in removes.any(dim=1).nonzero()[:, 0].tolist():
        if keep[i]:
            keep[removes[i]] = False
    return scores * keep.to(scores.device)
