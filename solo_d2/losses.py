"""Losses: focal loss for classes, Dice (or another) for masks (SOLO, arXiv:1912.04488, 3.3.2).

`solo_losses` computes the losses of a batch. A mask loss is a plain function of masks and their
targets, listed in `MASK_LOSSES`.

B images, L levels, S grid side, T cells of all levels, K classes, P cells or masks, J sums, H W
rows and columns of a mask.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from solo_d2.ops.mask_factors import multiply_factors
from solo_d2.ops.mask_sums import bytes_of_masks, sum_masks
from solo_d2.structures import BatchTotals, GridCells, GridTargets, HeadOutputs, MaskHead

SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny
# Temporary memory of a loss, in MiB. With strips of 64 MiB a GPU would launch hundreds of kernels
# for an image with 30 objects.
MEMORY_MIB, MEMORY_MIB_CUDA = 64, 1024
# 4-byte values per logit while the focal loss and its gradient are computed.
NUMBERS_OF_LOGIT = 10


def focal_loss(logits: Tensor, classes: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Compute the sum of the sigmoid focal loss (arXiv:1708.02002).

    Args:
        logits: (P, K).
        classes: (P,) int64 in [0, K]; K is background.
        alpha: weight of positives; negatives have weight 1 - alpha.
        gamma: focusing exponent.

    Returns:
        Scalar, float32.
    """
    logits = logits.float()
    positive = classes[:, None] == torch.arange(logits.shape[1], device=logits.device)
    # With z the logit of the correct label: alpha_t * (1 - sigmoid(z))^gamma * -log sigmoid(z).
    right = torch.where(positive, logits, -logits)
    weight = torch.where(positive, alpha, 1 - alpha)
    return -(weight * torch.sigmoid(-right) ** gamma * F.logsigmoid(right)).sum()


def dice_loss(mask_probs: Tensor, masks: Tensor) -> Tensor:
    """Compute the Dice loss 1 - 2 sum(pq) / (sum(p^2) + sum(q^2)) of masks (SOLO, equations 3, 4).

    Args:
        mask_probs: (P, H, W) in [0, 1].
        masks: (P, H, W) bool.

    Returns:
        (P,) float32 in [0, 1].
    """
    return _dice_of_sums(_dice_sums(mask_probs, masks))


def _dice_sums(mask_probs: Tensor, masks: Tensor) -> Tensor:
    """Return sum(pq), sum(p^2) and sum(q) of each mask, (P, 3)."""
    p = _at_least_float32(mask_probs).flatten(1)
    q = masks.flatten(1).to(p.dtype)
    return torch.stack([(p * q).sum(dim=1), p.square().sum(dim=1), q.sum(dim=1)], dim=1)


def _dice_of_sums(sums: Tensor, num_pixels: int = 0) -> Tensor:
    overlap, p_squared, q = sums.unbind(dim=1)
    # The published code adds 0.001 to each of the two sums.
    return 1 - 2 * overlap / (p_squared + 0.001 + q + 0.001)


def bce_loss(mask_probs: Tensor, masks: Tensor, *, pos_weight: float = 2.0) -> Tensor:
    """Compute the binary cross-entropy of each mask, averaged over its pixels (SOLO, table 4).

    Takes probabilities, since the product of Decoupled SOLO has no logits. 1 - p is exact to 6e-8,
    and logarithms are clamped at -87.

    Args:
        mask_probs: (P, H, W) in [0, 1].
        masks: (P, H, W) bool.
        pos_weight: weight of pixels inside the mask; others have weight 1.

    Returns:
        (P,) float32, not negative.
    """
    return _bce_terms(mask_probs, masks, pos_weight=pos_weight).mean(dim=(1, 2))


def _bce_terms(mask_probs: Tensor, masks: Tensor, *, pos_weight: float = 2.0) -> Tensor:
    """Return the weighted cross-entropy of each pixel, (P, H, W)."""
    _, cross_entropy = _rightness(mask_probs, masks)
    return torch.where(masks, pos_weight, 1.0) * cross_entropy


def mask_focal_loss(
    mask_probs: Tensor, masks: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the focal loss of each mask, averaged over its pixels (SOLO, table 4).

    Args:
        mask_probs: (P, H, W) in [0, 1].
        masks: (P, H, W) bool.
        alpha: weight of pixels inside the mask; others have weight 1 - alpha.
        gamma: focusing exponent.

    Returns:
        (P,) float32, not negative.
    """
    return _focal_terms(mask_probs, masks, alpha=alpha, gamma=gamma).mean(dim=(1, 2))


def _focal_terms(
    mask_probs: Tensor, masks: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the focal loss of each pixel, (P, H, W)."""
    right, cross_entropy = _rightness(mask_probs, masks)
    return torch.where(masks, alpha, 1 - alpha) * (1 - right) ** gamma * cross_entropy


def _rightness(mask_probs: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's probability of the correct label, and its -log, clamped at 87."""
    probs = _at_least_float32(mask_probs)
    right = torch.where(masks, probs, 1 - probs)
    return right, -right.clamp(min=SMALLEST_PROBABILITY).log()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Each mask loss maps (mask_probs, masks, *, parameters) to (P,); it may use neighboring pixels. Its
# parameters are read from the keys of MODEL.SOLO.LOSS with the same names.
MaskLoss = Callable[..., Tensor]
MASK_LOSSES: dict[str, MaskLoss] = {"dice": dice_loss, "bce": bce_loss, "focal": mask_focal_loss}


def build_mask_loss(name: str, params: Mapping[str, Any]) -> MaskLoss:
    """Select a mask loss and set its parameters.

    Args:
        name: a key of `MASK_LOSSES`.
        params: parameters by name; those that the loss does not have are ignored.

    Returns:
        `f(mask_probs, masks) -> (P,)`.
    """
    if name not in MASK_LOSSES:
        raise ValueError(f"unknown mask loss {name!r}: choose one of {', '.join(MASK_LOSSES)}")
    taken = inspect.signature(MASK_LOSSES[name]).parameters
    return partial(MASK_LOSSES[name], **{key: params[key] for key in params if key in taken})


def _sum_of(terms: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *masks, **params: terms(*masks, **params).flatten(1).sum(dim=1, keepdim=True)


def _mean_of_sums(sums: Tensor, num_pixels: int) -> Tensor:
    return sums[:, 0] / num_pixels


# Mask losses that depend on a few sums over the pixels of a mask, as pairs of functions: from any
# rows of masks and targets to sums (P, J), and from the total sums (P, J) and the number of pixels
# to losses (P,). They can be computed in strips, with little memory; see `sum_masks`.
SUM_FORMS: dict[MaskLoss, tuple[Callable[..., Tensor], Callable[[Tensor, int], Tensor]]] = {
    dice_loss: (_dice_sums, _dice_of_sums),
    bce_loss: (_sum_of(_bce_terms), _mean_of_sums),
    mask_focal_loss: (_sum_of(_focal_terms), _mean_of_sums),
}


def solo_losses(
    outputs: HeadOutputs,
    targets: GridTargets,
    *,
    head: MaskHead,
    totals: BatchTotals | None = None,
    mask_loss: MaskLoss = dice_loss,
    cls_weight: float = 1.0,
    mask_weight: float = 3.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    memory_mib: int | None = None,
) -> dict[str, Tensor]:
    """Compute the two losses of a batch.

    Both are normalized by counts of the whole batch over all processes, so that gradients averaged
    over processes equal those of one process with all images.

    Args:
        outputs: predictions of the head.
        targets: targets of the predictions.
        head: the head. It computes masks of groups without samples too, so that every parameter has
            a gradient (required by DistributedDataParallel).
        totals: counts of the whole batch if the targets are those of a micro-batch.
        mask_loss: see `MASK_LOSSES`.
        cls_weight: weight of `loss_cls`.
        mask_weight: weight of `loss_mask`.
        focal_alpha: see `focal_loss`.
        focal_gamma: see `focal_loss`.
        memory_mib: approximate limit of temporary memory; None: 64, on CUDA 1,024. The losses do
            not depend on it.

    Returns:
        "loss_cls" and "loss_mask", scalars, float32. Without samples `loss_mask` is exactly 0.
    """
    loss_cls = class_loss_sum(
        outputs.class_logits,
        targets.classes,
        alpha=focal_alpha,
        gamma=focal_gamma,
        memory_mib=memory_mib,
    )
    loss_mask = mask_loss_sum(
        outputs, targets, head=head, mask_loss=mask_loss, memory_mib=memory_mib
    )
    totals = totals or BatchTotals.of([targets])
    counts, processes = _sum_over_processes(
        [totals.num_positive_cells, totals.num_mask_samples], loss_cls.device
    )
    return {
        "loss_cls": cls_weight * processes * loss_cls / (counts[0] + 1),
        "loss_mask": mask_weight * processes * loss_mask / counts[1].clamp(min=1),
    }


def class_loss_sum(
    class_logits: Sequence[Tensor],
    classes: Tensor,
    *,
    alpha: float,
    gamma: float,
    memory_mib: int | None = None,
) -> Tensor:
    """Sum the focal loss over all cells of a batch.

    Levels that exceed the memory limit are computed in chunks and recomputed for the gradient.

    Args:
        class_logits: L tensors (B, K, S, S).
        classes: (B, T) int64 in [0, K].
        alpha: see `focal_loss`.
        gamma: see `focal_loss`.
        memory_mib: see `solo_losses`.

    Returns:
        Scalar, float32.
    """
    loss = class_logits[0].new_zeros((), dtype=torch.float32)
    memory = _memory(memory_mib, classes.device)
    focal = partial(focal_loss, alpha=alpha, gamma=gamma)
    num_cells = [level.shape[2] * level.shape[3] for level in class_logits]
    for level, of_level in zip(class_logits, classes.split(num_cells, dim=1), strict=True):
        logits = level.permute(0, 2, 3, 1).flatten(0, 2)
        rows = max(1, memory // (4 * NUMBERS_OF_LOGIT * logits.shape[1]))
        if len(logits) <= rows:
            loss = loss + focal(logits, of_level.flatten())
            continue
        for part in zip(logits.split(rows), of_level.flatten().split(rows), strict=True):
            loss = loss + checkpoint(focal, *part, use_reentrant=False, preserve_rng_state=False)
    return loss


def mask_loss_sum(
    outputs: HeadOutputs,
    targets: GridTargets,
    *,
    head: MaskHead,
    mask_loss: MaskLoss = dice_loss,
    memory_mib: int | None = None,
) -> Tensor:
    """Sum the mask losses of all samples of a batch; see `solo_losses` for the arguments.

    Masks are computed image by image. If they exceed the memory limit, the head provides factors
    and the loss is in `SUM_FORMS`, they are computed in strips of rows and recomputed for the
    gradient.

    Returns:
        Scalar, float32.
    """
    loss = targets.classes.new_zeros((), dtype=torch.float32)
    memory, sum_form = _memory(memory_mib, loss.device), _sum_form(mask_loss)
    for image, cells, instances, num_per_image in _samples_of_groups(targets, head):
        masks = targets.masks[head.mask_strides[head.mask_groups.index(cells.group)]]
        factors = head.mask_factors(outputs, image, cells)
        if factors and sum_form and bytes_of_masks(factors, num_per_image) > memory:
            pixel_sums, of_sums = sum_form
            sums = sum_masks(factors, num_per_image, masks, instances, pixel_sums, memory=memory)
            loss = loss + of_sums(sums, masks.shape[1] * masks.shape[2]).sum()
            continue
        stops = list(accumulate(num_per_image))
        for i, (stop, num) in enumerate(zip(stops, num_per_image, strict=True)):
            samples = slice(stop - num, stop)
            if factors:
                mask_probs = multiply_factors([factor.of_image(i, samples) for factor in factors])
            else:
                mask_probs = head.masks(outputs, i, GridCells(cells.index[samples], cells.group))
            loss = loss + mask_loss(mask_probs, masks[instances[samples]]).sum()
    return loss


def _memory(memory_mib: int | None, device: torch.device) -> int:
    """Return the limit of temporary memory in bytes."""
    if memory_mib is None:
        memory_mib = MEMORY_MIB_CUDA if device.type == "cuda" else MEMORY_MIB
    return memory_mib << 20


def _sum_form(
    mask_loss: MaskLoss,
) -> tuple[Callable[..., Tensor], Callable[[Tensor, int], Tensor]] | None:
    """Return the entry of `SUM_FORMS` with the parameters of the loss, or None."""
    params: dict[str, Any] = {}
    function = mask_loss
    if isinstance(mask_loss, partial) and not mask_loss.args:
        function, params = mask_loss.func, mask_loss.keywords
    if function not in SUM_FORMS:
        return None
    pixel_sums, of_sums = SUM_FORMS[function]
    return partial(pixel_sums, **params), of_sums


def _samples_of_groups(
    targets: GridTargets, head: MaskHead
) -> Iterator[tuple[Tensor, GridCells, Tensor, list[int]]]:
    """Yield the samples of each mask group: images, cells, instances, and their count by image."""
    starts = [0, *accumulate(n for levels in targets.num_samples for n in levels)]
    num_levels = len(head.mask_groups)
    for group in range(head.mask_groups[-1] + 1):
        first = head.mask_groups.index(group)
        last = first + head.mask_groups.count(group)
        spans = [
            slice(starts[image * num_levels + first], starts[image * num_levels + last])
            for image in range(len(targets.num_samples))
        ]
        num_per_image = [span.stop - span.start for span in spans]
        levels = tuple(x for x in range(first, last) if any(n[x] for n in targets.num_samples))
        image = torch.arange(len(spans)).repeat_interleave(torch.tensor(num_per_image))
        cells, instances = (
            torch.cat([x[span] for span in spans]) for x in (targets.cells, targets.instances)
        )
        image = image.to(cells.device, non_blocking=True)
        yield image, GridCells(cells, group, levels), instances, num_per_image


def semantic_loss(
    logits: Tensor, labels: Tensor, *, ignore_value: int, num_labelled: int | None = None
) -> Tensor:
    """Compute the cross-entropy, averaged over the labeled pixels of all processes.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64 in [0, C), or `ignore_value`.
        ignore_value: label of ignored pixels.
        num_labelled: number of labeled pixels of the whole batch if this is a micro-batch; None:
            counted here.

    Returns:
        Scalar, float32; exactly 0 if all pixels are ignored.
    """
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_value, reduction="sum")
    own = (labels != ignore_value).sum() if num_labelled is None else torch.tensor(num_labelled)
    count, processes = _sum_over_processes(own, logits.device)
    return processes * total / count.clamp(min=1)


def _sum_over_processes(counts: Sequence[int] | Tensor, device: torch.device) -> tuple[Tensor, int]:
    """Return the counts summed over all processes, on the device, and the number of processes."""
    total = torch.as_tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    if not (dist.is_available() and dist.is_initialized()):
        return total, 1
    dist.all_reduce(total)
    return total, dist.get_world_size()
