"""Merge instances and semantic labels (Panoptic FPN, arXiv:1901.02446, section 4.1).

Equivalent to Detectron2's `combine_semantic_and_instance_outputs`, which synchronizes several times
per instance. Instances are painted one by one here too, since each decision depends on the union of
those before it, but only inside their boxes and with the decision on the device. The host
synchronizes twice, regardless of the number of instances.

Shape letters: N instances, C semantic labels, H W rows and columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solo_d2.ops.mask_factors import resize_to_output

# Maximum float32 elements of `resize_scores` between its two steps (64 MiB), or one class.
CHUNK_ELEMENTS = 1 << 24


def merge_panoptic(
    masks: Tensor,
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    semantic: Tensor,
    *,
    num_labels: int,
    overlap_thresh: float = 0.5,
    stuff_area_limit: int = 4096,
    score_thresh: float = 0.5,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Assign each pixel to the best instance that covers it, else to its stuff label.

    Instances are painted by descending score; ties keep their order. An instance is dropped if more
    than `overlap_thresh` of its pixels are taken already; otherwise it gets the rest. The remaining
    pixels of each stuff label form a segment unless there are too few. No segment is empty;
    Detectron2 also lists empty ones if `overlap_thresh` is 1 or `stuff_area_limit` is 0.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) XYXY, integer-valued, right and bottom edge exclusive, around all pixels of
            each mask; see `mask_boxes`.
        scores: (N,) float.
        classes: (N,) int64.
        semantic: (H, W) int64 in [0, C); 0 denotes all things and gives no segment.
        num_labels: C.
        overlap_thresh: maximum fraction of an instance's pixels that may be taken already.
        stuff_area_limit: minimum number of pixels of a stuff segment.
        score_thresh: minimum score of an instance.

    Returns:
        (H, W) int32, the segment of each pixel, 0 for none; and the segments, numbered from 1:
        things in the order above, with id, isthing, score, category_id and instance_id (the index
        among the N), then stuff by label, with id, isthing, category_id and area.
    """
    things = torch.cat([boxes.double(), scores.double()[:, None], classes.double()[:, None]], dim=1)
    table = things.tolist()
    order = [n for n in range(len(table)) if table[n][4] >= score_thresh]
    order.sort(key=lambda n: -table[n][4])
    spans = [[int(side) for side in table[n][:4]] for n in order]
    taken = _paint(masks, order, spans, overlap_thresh)
    # The index of the candidate that got the pixel, from 1; beyond the candidates, the semantic
    # label.
    first_label = len(order) + 1
    place = torch.where(taken > 0, taken, semantic + first_label)
    areas = torch.bincount(place.flatten(), minlength=first_label + num_labels).tolist()
    segments = _list_segments([(n, *table[n][4:]) for n in order], areas, max(stuff_area_limit, 1))
    new_ids = torch.zeros(len(areas), dtype=torch.int32)
    new_ids[list(segments)] = torch.arange(1, len(segments) + 1, dtype=torch.int32)
    infos = [{"id": number, **info} for number, info in enumerate(segments.values(), start=1)]
    return new_ids.to(place.device, non_blocking=True)[place], infos


def _list_segments(
    things: Sequence[tuple[int, float, float]], areas: Sequence[int], stuff_area_limit: int
) -> dict[int, dict[str, Any]]:
    """Describe each segment, without its id, by its index in `areas`.

    Args:
        things: index, score and class of the candidates.
        areas: pixels of 0 (none), of each candidate, and of each semantic label.
        stuff_area_limit: see `merge_panoptic`.
    """
    segments: dict[int, dict[str, Any]] = {}
    for place, (n, score, category) in enumerate(things, start=1):
        if areas[place] > 0:
            info = {"isthing": True, "score": score, "category_id": int(category)}
            segments[place] = {**info, "instance_id": n}
    first_stuff = len(things) + 2  # label 0 denotes all things
    for label, area in enumerate(areas[first_stuff:], start=1):
        if area >= stuff_area_limit:
            info = {"isthing": False, "category_id": label, "area": area}
            segments[first_stuff + label - 1] = info
    return segments


def _paint(
    masks: Tensor,
    order: Sequence[int],
    spans: Sequence[Sequence[int]],
    overlap_thresh: float,
) -> Tensor:
    """Paint instances one after another, without synchronization.

    Args:
        masks: (N, H, W) bool.
        order: indices of the instances, first to last.
        spans: box of each in that order, x0, y0, x1 and y1.
        overlap_thresh: see `merge_panoptic`.

    Returns:
        (H, W) integers, 1 + the index in `order`; 0 for no instance.
    """
    size, device = masks.shape[1:], masks.device
    # On the host, arithmetic on bytes is much faster than masked writes.
    pixels = masks.view(torch.uint8)
    free = torch.ones(size, dtype=torch.uint8, device=device)
    fits = len(order) < 256
    taken = torch.zeros(size, dtype=torch.uint8 if fits else torch.int32, device=device)
    for place, (n, (x0, y0, x1, y1)) in enumerate(zip(order, spans, strict=True), start=1):
        if x1 <= x0 or y1 <= y0:
            continue
        box = (slice(y0, y1), slice(x0, x1))
        mask = pixels[n][box]
        wanted = mask & free[box]
        area, left = mask.sum(dtype=torch.int32), wanted.sum(dtype=torch.int32)
        # In float64, like the quotient of two Python numbers.
        wanted *= (area - left).double() / area <= overlap_thresh
        free[box] -= wanted
        taken[box].add_(wanted, alpha=place)
    return taken


def resize_scores(
    scores: Tensor, *, stride: int, image_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """Resize scores to the output size like Detectron2's semantic heads, in chunks of classes.

    Both steps are bilinear.

    Args:
        scores: (C, h, w) float over the padded input.
        stride: stride of the scores in input pixels.
        image_size: height and width of the image in the padded input.
        output_size: H and W.

    Returns:
        (C, H, W) float32.
    """
    height, width = (side * stride for side in scores.shape[1:])
    resized = torch.empty(len(scores), *output_size, device=scores.device)
    chunk = max(1, CHUNK_ELEMENTS // max(height * width, 1))
    for start in range(0, len(scores), chunk):
        part = scores[None, start : start + chunk].float()
        resized[start : start + chunk] = resize_to_output(part, stride, image_size, output_size)[0]
    return resized
