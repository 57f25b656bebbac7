"""Target assignment and losses in plain loops, as in published code: the baseline.

Targets are assigned per image, level and instance (SOLO, arXiv:1912.04488, 3.3.1), with a mask for
each positive cell; losses use whole float32 masks (3.3.2). Supports CELL_CONFLICT "all" and "last".

B images, L levels, S grid side, K classes, P positive cells of an image and level, H W rows and
columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solo_d2.losses import MaskLoss, dice_loss, focal_loss
from solo_d2.ops.candidates import flatten_levels
from solo_d2.structures import GridCells, HeadOutputs, MaskHead

F32 = np.float32


@dataclass(frozen=True)
class PlainTargets:
    """Targets of a batch; cells are indexed over all levels."""

    classes: Tensor  # (B, T) int64 in [0, K]; K is background
    cells: list[list[Tensor]]  # B lists of L tensors (P,) int64
    masks: list[list[Tensor]]  # B lists of L tensors (P, H, W) uint8


def plain_targets(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    mask_strides: Sequence[int],
    num_classes: int,
    center_scale: float = 0.2,
    cell_conflict: str = "all",
) -> PlainTargets:
    """Assign the instances of a batch to cells; arguments as of `assign_grid_targets`."""
    device = classes[0].device
    targets = PlainTargets(torch.empty(0), [], [])
    class_maps = []
    for image in zip(boxes, classes, masks, strict=True):
        box, label, mask = (x.cpu().numpy() for x in image)
        class_map = np.full(sum(side * side for side in num_grids), num_classes)
        cells, downsampled = [], []
        first = 0
        for side, scales, stride in zip(num_grids, scale_ranges, mask_strides, strict=True):
            chosen: dict[Any, tuple[int, NDArray[np.uint8]]] = {}
            for cell, n in assign_level(box, mask, padded_size, side, scales, center_scale):
                class_map[first + cell] = label[n]
                key = cell if cell_conflict == "last" else (cell, n)
                chosen[key] = first + cell, _downsample(mask[n], stride, padded_size)
            none = np.zeros((0, *(length // stride for length in padded_size)), np.uint8)
            found = np.stack([x for _, x in chosen.values()]) if chosen else none
            cells.append(torch.tensor([cell for cell, _ in chosen.values()]).long().to(device))
            downsampled.append(torch.from_numpy(found).to(device))
            first += side * side
        class_maps.append(torch.from_numpy(class_map))
        targets.cells.append(cells)
        targets.masks.append(downsampled)
    return replace(targets, classes=torch.stack(class_maps).to(device))


def assign_level(
    boxes: NDArray[np.float32],
    masks: NDArray[np.bool_],
    padded_size: tuple[int, int],
    side: int,
    scales: Sequence[float],
    center_scale: float,
) -> list[tuple[int, int]]:
    """Return (cell, instance) of all assignments of one level, instance by instance.

    The slow reference of `assign_grid_targets`, written from facts about the published code.
    """
    height, width = padded_size
    samples = []
    for n, (box, mask) in enumerate(zip(boxes, masks, strict=True)):
        w, h = box[2] - box[0], box[3] - box[1]
        if not scales[0] <= np.sqrt(F32(w) * F32(h)) <= scales[1]:
            continue
        ys, xs = np.nonzero(mask)
        if not len(ys):
            continue
        cy, cx = F32(ys.mean()), F32(xs.mean())
        half_h, half_w = (F32(0.5) * length * F32(center_scale) for length in (h, w))
        row, column = _cell(cy, height, side), _cell(cx, width, side)
        top = max(0, _cell(cy - half_h, height, side), row - 1)
        bottom = min(side - 1, _cell(cy + half_h, height, side), row + 1)
        left = max(0, _cell(cx - half_w, width, side), column - 1)
        right = min(side - 1, _cell(cx + half_w, width, side), column + 1)
        for i in range(top, bottom + 1):
            for j in range(left, right + 1):
                samples.append((i * side + j, n))
    return samples


def _cell(coordinate: np.float32, size: int, side: int) -> int:
    return int(np.floor_divide(coordinate / F32(size), F32(1.0 / side)))


def _downsample(
    mask: NDArray[np.bool_], stride: int, padded_size: tuple[int, int]
) -> NDArray[np.uint8]:
    height, width = padded_size
    padded = np.zeros(padded_size, np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    size = (width // stride, height // stride)
    return cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def plain_losses(
    outputs: HeadOutputs,
    targets: PlainTargets,
    *,
    head: MaskHead,
    mask_loss: MaskLoss = dice_loss,
    cls_weight: float = 1.0,
    mask_weight: float = 3.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> dict[str, Tensor]:
    """Compute the losses of `solo_losses` for one process from whole masks."""
    logits = flatten_levels(outputs.class_logits).flatten(0, 1)
    loss_cls = focal_loss(logits, targets.classes.flatten(), alpha=focal_alpha, gamma=focal_gamma)
    loss_mask = plain_mask_loss(outputs, targets, head=head, mask_loss=mask_loss)
    num_samples = sum(len(cells) for levels in targets.cells for cells in levels)
    num_positive = int((targets.classes < logits.shape[1]).sum())
    return {
        "loss_cls": cls_weight * loss_cls / (num_positive + 1),
        "loss_mask": mask_weight * loss_mask / max(num_samples, 1),
    }


def plain_mask_loss(
    outputs: HeadOutputs, targets: PlainTargets, *, head: MaskHead, mask_loss: MaskLoss = dice_loss
) -> Tensor:
    """Sum the losses of all masks, level by level and image by image."""
    loss = torch.zeros((), device=targets.classes.device)
    for level, group in enumerate(head.mask_groups):
        for image, cells in enumerate(targets.cells):
            probs = head.masks(outputs, image, GridCells(cells[level], group)).float()
            loss = loss + mask_loss(probs, targets.masks[image][level].bool()).sum()
    return loss
