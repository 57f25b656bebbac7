"""Losses: focal for the classes, Dice for the masks (SOLO, arXiv:1912.04488, section 3.3.2)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from solo_d2.structures import Cells, GridTargets, HeadOutputs, flatten_levels


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


def solo_losses(
    outputs: HeadOutputs,
    targets: GridTargets,
    *,
    cell_masks: Callable[[HeadOutputs, Cells], Tensor],
    mask_strides: Sequence[int],
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
            mask stride. It is called for images without samples too, so that every parameter has a
            gradient, if only zero (DistributedDataParallel waits for each).
        mask_strides: stride of the predicted masks of each level.
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
    for cells, instances, stride in _groups_of_samples(targets, mask_strides):
        probs = cell_masks(outputs, cells)
        loss_mask = loss_mask + dice_loss(probs, targets.masks[stride][instances]).sum()
    counts, processes = _sum_over_processes(
        [targets.num_positive_cells, len(targets.cells)], logits.device
    )
    return {
        "loss_cls": cls_weight * processes * loss_cls / (counts[0] + 1),
        "loss_mask": mask_weight * processes * loss_mask / counts[1].clamp(min=1),
    }


def _groups_of_samples(
    targets: GridTargets, mask_strides: Sequence[int]
) -> Iterator[tuple[Cells, Tensor, int]]:
    """Mask samples by image and mask stride: the cells, their instances and the stride."""
    start = 0
    for image, num_samples in enumerate(targets.num_samples):
        by_stride = groupby(zip(mask_strides, num_samples, strict=True), key=itemgetter(0))
        for stride, levels in by_stride:
            end = start + sum(count for _, count in levels)
            yield Cells(image, targets.cells[start:end]), targets.instances[start:end], stride
            start = end


def _sum_over_processes(counts: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """The counts summed over all processes, on the device, and the number of processes."""
    total = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    if not (dist.is_available() and dist.is_initialized()):
        return total, 1
    dist.all_reduce(total)
    return total, dist.get_world_size()
