"""The shared part of all mask NMS: input checks, grouping by class, and overlaps.

Shape letters: M masks, H W rows and columns, K classes.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.mask_iou import MaskRows, mask_overlaps
from solo_d2.ops.threads import one_thread


def call_nms(
    nms: Callable[..., Tensor],
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    rows: MaskRows | None,
) -> Tensor:
    """Run an NMS on selected masks; on a copy of them if it has no parameter `rows`.

    Args:
        nms: `f(masks, labels, scores) -> new scores`, such as a partial of `matrix_nms`.
        masks: (N, H, W) bool.
        labels: (M,) int64.
        scores: (M,) float32; masks with score 0 do not count.
        rows: selection of M masks; None: all in order.

    Returns:
        (M,) float32.
    """
    if rows is None:
        return nms(masks, labels, scores)
    if "rows" in inspect.signature(nms).parameters:
        return nms(masks, labels, scores, rows=rows)
    masks = masks.index_select(0, rows.indices)
    masks &= (scores > 0)[:, None, None]
    return nms(masks, labels, scores)


def run_nms(
    new_scores: Callable[..., Tensor],
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    class_agnostic: bool,
    backend: str,
    areas: Tensor | None,
    rows: MaskRows | None,
) -> Tensor:
    """Check the inputs of an NMS, count overlaps, and compute the new scores.

    Args:
        new_scores: maps overlaps (M, M) int32 of `mask_overlaps`, scores (M,) float32, pixels per
            mask and the resolved backend to new scores (M,); M > 0.
        masks: (M, H, W) bool, best first; (N, H, W) with `rows`.
        labels: (M,) int64 in [0, K).
        scores: (M,) in [0, 1], non-increasing.
        class_agnostic: whether masks of different classes suppress each other too.
        backend: see `solo_d2.ops.backends`.
        areas: (M,) pixels of each mask, used instead of those counted; or None.
        rows: selection of M masks; None: all in order.

    Returns:
        (M,) float32, in input order; (0,) for no masks.
    """
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be (M, H, W) bool, not {tuple(masks.shape)} {masks.dtype}")
    num_masks = len(masks if rows is None else rows.indices)
    if labels.shape != (num_masks,) or scores.shape != (num_masks,):
        raise ValueError(
            f"{num_masks} masks need as many labels and scores, "
            f"not {tuple(labels.shape)} and {tuple(scores.shape)}"
        )
    if areas is not None and areas.shape != labels.shape:
        raise ValueError(f"{num_masks} masks need as many areas, not {tuple(areas.shape)}")
    backend = choose_backend(backend, masks.device)
    scores = scores.float()
    if num_masks == 0:
        return scores.clone()
    groups = torch.zeros_like(labels) if class_agnostic else labels
    num_pixels = masks.shape[1] * masks.shape[2]
    with one_thread() if backend == "tiled" else nullcontext():
        overlaps = mask_overlaps(masks, groups, rows=rows, backend=backend)
        if areas is not None:
            overlaps.diagonal().copy_(areas)
        return new_scores(overlaps, scores, num_pixels, backend)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the choices."""
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"unknown {name} {value!r}: choose {listed}")
