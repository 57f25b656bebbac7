"""Hard (greedy) NMS on masks, the baseline of SOLOv2's table 3c."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.ops.nms_family import apply_nms, upper_iou


def hard_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    thresh: float = 0.5,
    class_agnostic: bool = False,
    num_per_image: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Remove each mask that overlaps a kept better one of its class.

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
        partial(_hard_nms, thresh=thresh),
        masks,
        labels,
        scores,
        class_agnostic=class_agnostic,
        num_per_image=num_per_image,
        backend=backend,
    )


def _hard_nms(
    masks: Tensor, groups: Tensor, scores: Tensor, backend: str, *, thresh: float
) -> Tensor:
    if backend == "triton":
        from solo_d2.ops.triton.nms_greedy import hard_nms_triton

        overlaps = mask_overlaps(masks, groups, backend=backend)
        return hard_nms_triton(overlaps, scores, masks[0].numel(), thresh=thresh)
    removes = upper_iou(masks, groups, backend) > thresh
    return scores * greedy_keep(removes)


def greedy_keep(removes: Tensor) -> Tensor:
    """Who survives when each survivor removes later ones.

    Greedy by nature, so the host does it: one wait for the device, not M launches.

    Args:
        removes: (M, M) bool, true only above the diagonal.

    Returns:
        (M,) bool, on the same device.
    """
    rows = removes.cpu()
    keep = torch.ones(len(rows), dtype=torch.bool)
    for i in rows.any(dim=1).nonzero()[:, 0].tolist():
        if keep[i]:
            keep[rows[i]] = False
    return keep.to(removes.device)
