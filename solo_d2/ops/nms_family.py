"""What all mask NMS have in common: checks, who competes with whom, several images in one call.

Shape letters: M masks, H and W rows and columns, K classes, B images.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.mask_iou import iou_rows, mask_overlaps
from solo_d2.ops.threads import one_thread

# From masks (M, H, W), groups (M,), scores (M,) and a resolved backend to new scores; M > 0.
Strategy = Callable[[Tensor, Tensor, Tensor, str], Tensor]


def apply_nms(
    strategy: Strategy,
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    class_agnostic: bool,
    num_per_image: Sequence[int] | None,
    backend: str,
) -> Tensor:
    """Check the input of an NMS, form the groups that compete, and run it.

    Args:
        strategy: the NMS proper.
        masks: (M, H, W) bool, of each image best first, images one after the other.
        labels: (M,) int64 in [0, K).
        scores: (M,) in [0, 1], within an image not increasing.
        class_agnostic: whether masks of different classes compete too.
        num_per_image: how many of the masks belong to each of B images; None for a single image.
        backend: see `solo_d2.ops.backends`.

    Returns:
        (M,) float32, in input order, the same as image by image; (0,) for no masks.
    """
    _check_input(masks, labels, scores, num_per_image)
    backend = choose_backend(backend, masks.device)
    scores = scores.float()
    if len(masks) == 0:
        return scores.clone()
    groups = torch.zeros_like(labels) if class_agnostic else labels
    if backend == "tiled":  # image by image: nothing to gain from pairs of different images
        counts = [len(masks)] if num_per_image is None else list(num_per_image)
        parts = zip(masks.split(counts), groups.split(counts), scores.split(counts), strict=True)
        with one_thread():
            return torch.cat([strategy(m, g, s, backend) for m, g, s in parts if len(m)])
    if num_per_image is None:
        return strategy(masks, groups, scores, backend)
    groups = groups + image_index(num_per_image, masks.device) * (groups.amax() + 1)
    return strategy(masks, groups, scores, backend)


def image_index(num_per_image: Sequence[int], device: torch.device) -> Tensor:
    """(M,) int64: the image of each mask; the counts come from the host, so nothing waits."""
    index = [image for image, num in enumerate(num_per_image) for _ in range(num)]
    return torch.tensor(index, dtype=torch.int64).to(device, non_blocking=True)


def upper_iou(masks: Tensor, groups: Tensor, backend: str) -> Tensor:
    """IoU of each mask with the later masks of its group.

    Args:
        masks: (M, H, W) bool.
        groups: (M,) int64.
        backend: see `solo_d2.ops.backends`.

    Returns:
        (M, M) float32; 0 on and below the diagonal and between groups.
    """
    overlaps = mask_overlaps(masks, groups, backend=backend)
    return iou_rows(overlaps, 0, len(masks), masks.shape[1] * masks.shape[2])


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the choices."""
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"unknown {name} {value!r}: choose {listed}")


def _check_input(
    masks: Tensor, labels: Tensor, scores: Tensor, num_per_image: Sequence[int] | None
) -> None:
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be (M, H, W) bool, not {tuple(masks.shape)} {masks.dtype}")
    if labels.shape != masks.shape[:1] or scores.shape != masks.shape[:1]:
        raise ValueError(
            f"{len(masks)} masks need as many labels and scores, "
            f"not {tuple(labels.shape)} and {tuple(scores.shape)}"
        )
    if num_per_image is not None and sum(num_per_image) != len(masks):
        raise ValueError(f"{len(masks)} masks, but {list(num_per_image)} of the images")
