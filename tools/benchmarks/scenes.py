"""Synthetic binary masks with the statistics of NMS inputs on photographs.

Shape letters: N masks, H and W rows and columns, K classes.

As in COCO, the area of an object relative to the image is log-normal with median 0.5 % and mean
4 %; the aspect ratio is log-normal; a mask fills about 0.6 of its box; class frequencies decrease
with their rank (of 80, the first has a fifth of the objects). Several cells predict each object, so
masks form groups of near-duplicates, some of another class.
"""

import math
from typing import Any

import torch
from torch import Tensor

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.threads import one_thread

AREA_MEDIAN, AREA_LOG_STD, AREA_MAX = 0.0052, 2.4, 0.6
SIDES_LOG_STD = 0.7
WRONG_CLASS = 0.05
HARMONICS = 4  # of the outline's radius over the angle


def make_scene(
    num: int, size: tuple[int, int], num_classes: int, seed: int = 0, *, distinct: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Generate the masks of an image that enter NMS, or its annotations.

    Args:
        num: N, at least 0.
        size: H and W.
        num_classes: K; 1 is a crowd.
        seed: random seed.
        distinct: draw each object once, as in annotations.

    Returns:
        Masks (N, H, W) bool, labels (N,) int64 in [0, K), scores (N,) float32, not increasing.
    """
    with one_thread():  # thousands of small operations
        return _draw_scene(num, size, num_classes, seed, distinct)


def make_instances(num: int, size: tuple[int, int], num_classes: int, seed: int = 0) -> Any:
    """Generate the annotations of an image as Detectron2's Instances."""
    from detectron2.structures import BitMasks, Boxes, Instances

    masks, classes, _ = make_scene(num, size, num_classes, seed, distinct=True)
    boxes = Boxes(mask_boxes(masks))
    return Instances(size, gt_masks=BitMasks(masks), gt_classes=classes, gt_boxes=boxes)


def class_frequencies(num_classes: int) -> Tensor:
    """(K,) float32 probabilities, most frequent first, summing to 1."""
    frequencies = 1 / torch.arange(1, num_classes + 1).float()
    return frequencies / frequencies.sum()


def _draw_scene(
    num: int, size: tuple[int, int], num_classes: int, seed: int, distinct: bool
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(num, *size, dtype=torch.bool)
    labels = torch.zeros(num, dtype=torch.int64)
    probs = class_frequencies(num_classes)
    start = 0
    while start < num:
        area = math.exp(float(torch.randn(1, generator=generator)) * AREA_LOG_STD)
        area = min(area * AREA_MEDIAN, AREA_MAX)
        # Large objects are claimed by more cells: up to 3x3 on each of two levels.
        most = 1 if distinct else 3 + round(15 * min(1.0, math.sqrt(area)))
        copies = min(int(torch.randint(1, most + 1, (1,), generator=generator)), num - start)
        _draw_object(masks[start : start + copies], area, generator)
        drawn = torch.multinomial(probs, 1 + copies, replacement=True, generator=generator)
        wrong = torch.rand(copies, generator=generator) < WRONG_CLASS
        labels[start : start + copies] = torch.where(wrong, drawn[1:], drawn[0])
        start += copies
    order = torch.randperm(num, generator=generator)
    scores = torch.rand(num, generator=generator).sort(descending=True).values
    return masks[order], labels[order], scores


def _draw_object(out: Tensor, area: float, generator: torch.Generator) -> None:
    """Draw near-duplicates of one blob into zeros (copies, H, W) bool."""
    height, width = out.shape[1:]
    shape = torch.randn(6 + 2 * HARMONICS, generator=generator)
    place = torch.rand(2, generator=generator) * torch.tensor([height, width])
    for mask in out:
        jitter = shape + 0.2 * torch.randn(len(shape), generator=generator)
        ratio = math.exp(SIDES_LOG_STD / 2 * float(jitter[0]))
        radius = math.sqrt(area * height * width / math.pi) * math.exp(0.1 * float(jitter[1]))
        semi_axes = (max(1.0, radius * ratio), max(1.0, radius / ratio))
        center = [float(place[i]) + 0.15 * semi_axes[i] * float(jitter[2 + i]) for i in (0, 1)]
        _draw_blob(mask, center, semi_axes, jitter[6:].view(2, -1))


def _draw_blob(
    mask: Tensor, center: list[float], semi_axes: tuple[float, float], waves: Tensor
) -> None:
    """Draw a wavy ellipse into (H, W) bool, clipped to it and never empty."""
    reach = 1.5
    lows, highs = [], []
    for middle, semi_axis, side in zip(center, semi_axes, mask.shape, strict=True):
        low = min(max(math.floor(middle - reach * semi_axis), 0), side - 1)
        lows.append(low)
        highs.append(max(low + 1, min(math.ceil(middle + reach * semi_axis), side)))
    y, x = (
        (torch.arange(low, high) + 0.5 - middle) / semi_axis
        for low, high, middle, semi_axis in zip(lows, highs, center, semi_axes, strict=True)
    )
    angle = torch.atan2(y[:, None], x[None, :])
    turns = torch.arange(2, 2 + waves.shape[1])[:, None, None]
    weights = (0.25 / turns)[None] * waves[:, :, None, None]
    radius = 1 + (weights[0] * (angle * turns).cos() + weights[1] * (angle * turns).sin()).sum(0)
    inside = y.square()[:, None] + x.square()[None, :] < radius.clamp(0.3, reach).square()
    mask[lows[0] : highs[0], lows[1] : highs[1]] = inside
    mask[(lows[0] + highs[0]) // 2, (lows[1] + highs[1]) // 2] = True
