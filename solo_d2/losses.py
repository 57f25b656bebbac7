"""Losses: focal for the classes; Dice (or another) for the masks (SOLO, arXiv:1912.04488, 3.3.2).

A mask loss is `f(mask_probs, masks, **params) -> loss of each mask`; the table is `MASK_LOSSES`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from solo_d2.structures import Cells, GridTargets, HeadOutputs, flatten_levels

SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


def focal_loss(logits: Tensor, classes: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (arXiv:1708.02002), summed.

    Args:
        logits: (P, K).
        classes: (P,) int64 in [0, K]; K is background.
        alpha: weight of the positives; the negatives weigh 1 - alpha.
        gamma: focusing exponent.

    Returns:
        Scalar, float32.
    """
    logits = logits.float()
    positive = classes[:, None] == torch.arange(logits.shape[1], device=logits.device)
    # With z the logit of being right: alpha_t * (1 - sigmoid(z))^gamma * -log sigmoid(z).
    right = torch.where(positive, logits, -logits)
    weight = torch.where(positive, alpha, 1 - alpha)
    return -(weight * torch.sigmoid(-right) ** gamma * F.logsigmoid(right)).sum()


def dice_loss(mask_probs: Tensor, masks: Tensor) -> Tensor:
    """Dice loss 1 - 2 sum(pq) / (sum(p^2) + sum(q^2)) of each mask, SOLO's equations 3 and 4.

    Args:
        mask_probs: (P, H, W) in [0, 1].
        masks: (P, H, W) bool.

    Returns:
        (P,) float32 in [0, 1].
    """
    probs, target = mask_probs.float().flatten(1), masks.flatten(1)
    overlap = (probs * target).sum(dim=1)
    # The published code adds 0.001 to each of the two sums.
    total = probs.square().sum(dim=1) + 0.001 + target.sum(dim=1) + 0.001
    return 1 - 2 * overlap / total


def bce_loss(mask_probs: Tensor, masks: Tensor, *, pos_weight: float = 2.0) -> Tensor:
    """Binary cross-entropy of each mask, the mean over its pixels (SOLO, table 4).

    Args:
        mask_probs: (P, H, W) in [0, 1]. Probabilities, as the product of Decoupled SOLO has no
            logits; 1 - p is exact to 6e-8, and logarithms end at -87.
        masks: (P, H, W) bool.
        pos_weight: weight of the pixels of the mask.

    Returns:
        (P,) float32, not negative.
    """
    probs, target = mask_probs.float().flatten(1), masks.flatten(1)
    right = torch.where(target, probs, 1 - probs)
    return (torch.where(target, pos_weight, 1.0) * _cross_entropy(right)).mean(dim=1)


def mask_focal_loss(
    mask_probs: Tensor, masks: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each mask, the mean over its pixels (SOLO, table 4).

    Args:
        mask_probs: (P, H, W) in [0, 1].
        masks: (P, H, W) bool.
        alpha: weight of the pixels of the mask; the others weigh 1 - alpha.
        gamma: focusing exponent.

    Returns:
        (P,) float32, not negative.
    """
    probs, target = mask_probs.float().flatten(1), masks.flatten(1)
    right = torch.where(target, probs, 1 - probs)
    weight = torch.where(target, alpha, 1 - alpha)
    return (weight * (1 - right) ** gamma * _cross_entropy(right)).mean(dim=1)


def _cross_entropy(right: Tensor) -> Tensor:
    """-log of the probability of being right, at most 87; its gradient is 0 beyond."""
    return -right.clamp(min=SMALLEST_PROBABILITY).log()


# Each mask loss, with the parameters that it takes.
MASK_LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "dice": (dice_loss, ()),
    "bce": (bce_loss, ("pos_weight",)),
    "focal": (mask_focal_loss, ("alpha", "gamma")),
}


def build_mask_loss(name: str, params: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Choose a mask loss.

    Args:
        name: a key of `MASK_LOSSES`.
        params: at least the parameters of that loss; others are left alone.

    Returns:
        `f(mask_probs, masks) -> loss of each mask`.
    """
    if name not in MASK_LOSSES:
        raise ValueError(f"unknown mask loss {name!r}: choose one of {', '.join(MASK_LOSSES)}")
    function, keys = MASK_LOSSES[name]
    return partial(function, **{key: params[key] for key in keys})


def solo_losses(
    outputs: HeadOutputs,
    targets: GridTargets,
    *,
    cell_masks: Callable[[HeadOutputs, Cells], Tensor],
    mask_strides: Sequence[int],
    mask_groups: Sequence[int],
    mask_loss: Callable[[Tensor, Tensor], Tensor] = dice_loss,
    cls_weight: float = 1.0,
    mask_weight: float = 3.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> dict[str, Tensor]:
    """The two losses of a batch.

    Both are divided by counts of the whole batch, over all processes: averaging the gradients of W
    processes gives what one process with all their images would give.

    Args:
        outputs: what the head predicts.
        targets: what it should predict.
        cell_masks: the head's method that makes mask probabilities of cells of one image and one
            mask group. It is called for groups without samples too, so that every parameter has a
            gradient, if only zero (DistributedDataParallel waits for each).
        mask_strides: stride of the predicted masks of each level.
        mask_groups: mask group of each level, not falling.
        mask_loss: `f(mask_probs, masks) -> (P,) loss of each mask`.
        cls_weight: weight of `loss_cls`.
        mask_weight: weight of `loss_mask`.
        focal_alpha: see `focal_loss`.
        focal_gamma: see `focal_loss`.

    Returns:
        "loss_cls" and "loss_mask", scalars, float32. Without samples `loss_mask` is exactly 0.
    """
    logits = flatten_levels(outputs.class_logits).flatten(0, 1)
    loss_cls = focal_loss(logits, targets.classes.flatten(), alpha=focal_alpha, gamma=focal_gamma)
    loss_mask = logits.new_zeros((), dtype=torch.float32)
    for cells, instances, stride in _groups_of_samples(targets, mask_strides, mask_groups):
        probs = cell_masks(outputs, cells)
        loss_mask = loss_mask + mask_loss(probs, targets.masks[stride][instances]).sum()
    counts, processes = _sum_over_processes(
        [targets.num_positive_cells, len(targets.cells)], logits.device
    )
    return {
        "loss_cls": cls_weight * processes * loss_cls / (counts[0] + 1),
        "loss_mask": mask_weight * processes * loss_mask / counts[1].clamp(min=1),
    }


def _groups_of_samples(
    targets: GridTargets, mask_strides: Sequence[int], mask_groups: Sequence[int]
) -> Iterator[tuple[Cells, Tensor, int]]:
    """Mask samples by image and mask group: the cells, their instances and the mask stride."""
    start = 0
    groups = list(zip(mask_groups, mask_strides, strict=True))
    for image, num_samples in enumerate(targets.num_samples):
        levels = zip(groups, num_samples, strict=True)
        for (group, stride), counts in groupby(levels, key=itemgetter(0)):
            end = start + sum(count for _, count in counts)
            cells = Cells(image, targets.cells[start:end], group)
            yield cells, targets.instances[start:end], stride
            start = end


def semantic_loss(logits: Tensor, labels: Tensor, *, ignore_value: int) -> Tensor:
    """Cross-entropy of pixels, the mean over the labelled ones of the batches of all processes.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64 in [0, C), or the ignored value.
        ignore_value: label of the pixels that do not count.

    Returns:
        Scalar, float32; exactly 0 where no pixel counts.
    """
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_value, reduction="sum")
    num_labelled = (labels != ignore_value).sum()
    count, processes = _sum_over_processes(num_labelled, logits.device)
    return processes * total / count.clamp(min=1)


def _sum_over_processes(counts: Sequence[int] | Tensor, device: torch.device) -> tuple[Tensor, int]:
    """The counts summed over all processes, on the device, and the number of processes."""
    total = torch.as_tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    if not (dist.is_available() and dist.is_initialized()):
        return total, 1
    dist.all_reduce(total)
    return total, dist.get_world_size()
