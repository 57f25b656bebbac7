"""Fast overlays, suitable for video.

Masks are merged into one label map on their device, and only the map is copied to the host.
Smaller masks are drawn on top. For print, see `solo_d2.visualization.publication`.

Shape letters: N instances, H and W rows and columns. Images are (H, W, 3) uint8 RGB.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor

from solo_d2.ops.mask_crops import MaskCrops, crops_of, join_crops, stack_masks, whole_masks
from solo_d2.visualization.colors import Color, instance_color, stuff_color
from solo_d2.visualization.labels import LabelRoom
from solo_d2.visualization.painting import paint
from solo_d2.visualization.text import text_size, write_labels

# When to write class and score of instances.
LABELS = ("auto", "always", "never")


def draw_instances(
    image: NDArray[np.uint8],
    instances: Instances,
    class_names: Sequence[str],
    *,
    stuff: Instances | None = None,
    stuff_names: Sequence[str] = (),
    scale: float = 1.0,
    draw_boxes: bool = False,
    colors: Sequence[Color] | None = None,
    contours: bool = False,
    labels: str = "auto",
) -> NDArray[np.uint8]:
    """Draw masks with their outline, class and score over an image, and stuff below them.

    Args:
        image: (H, W, 3) uint8, RGB; not modified.
        instances: instances on any device, with pred_masks (N, H, W), pred_boxes, pred_classes and
            scores. In a panoptic segmentation, masks are the pixels of each instance in it.
        class_names: names of the K classes.
        stuff: stuff without scores, drawn in muted colours by label; None for no stuff.
        stuff_names: names of the stuff labels.
        scale: size of the result relative to the image; outlines and text stay sharp.
        draw_boxes: whether to draw boxes.
        colors: N colours, RGB in [0, 1]; None to choose them by the order of the instances.
        contours: whether the masks are contours, drawn as lines.
        labels: one of `LABELS`. "auto" writes no text for a single class; otherwise it shrinks,
            moves or skips labels that would hide instances or each other, see `LabelRoom`.

    Returns:
        (scale * H, scale * W, 3) uint8, RGB, rounded.
    """
    if colors is None:
        colors = [instance_color(index) for index in range(len(instances))]
    picture, instances = _enlarge(image, instances, scale, smooth=not contours)
    stuff = instances[:0] if stuff is None else _enlarge(image, stuff, scale)[1]
    ground = [stuff_color(label) for label in stuff.pred_classes.tolist()]
    on_top, order, room = lay_masks(stuff, instances)
    if order:
        painted = [*ground, *colors]
        paint(picture, on_top, [painted[index] for index in order], filled=not contours)
    size = text_size(*picture.shape[:2])
    write_labels(picture, *stuff_labels(stuff, stuff_names), ground, size)
    boxes = instances.pred_boxes.tensor.cpu().numpy()
    if draw_boxes:
        for (left, top, right, bottom), color in zip(boxes.astype(int), colors, strict=True):
            ink = [255 * value for value in color]
            corner = max(left, right - 1), max(top, bottom - 1)
            cv2.rectangle(picture, (left, top), corner, ink, 1)
    if has_labels(labels, class_names):
        texts = instance_labels(instances, class_names)
        write_labels(picture, texts, boxes, colors, size, room=room if labels == "auto" else None)
    return picture


def has_labels(labels: str, class_names: Sequence[str]) -> bool:
    """Return whether to label instances; raise ValueError unless `labels` is in `LABELS`."""
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, not {labels!r}")
    return labels == "always" or (labels == "auto" and len(class_names) > 1)


def instance_labels(instances: Instances, class_names: Sequence[str]) -> list[str]:
    """Return class name and score of each instance, as "cat 87%"."""
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return [f"{class_names[c]} {score:.0%}" for c, score in zip(classes, scores, strict=True)]


def deepest_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return column and row of the mask pixel farthest from the border of the mask."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return int(x), int(y)


def stuff_labels(stuff: Instances, names: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Return the name of each stuff mask and (N, 4) an empty box at its deepest point."""
    places = [deepest_point(mask) for mask in whole_masks(stuff.pred_masks).cpu().numpy()]
    points = np.array([(x, y, x, y) for x, y in places], np.float32).reshape(-1, 4)
    return [names[label] for label in stuff.pred_classes.tolist()], points


def _enlarge(
    image: NDArray[np.uint8], instances: Instances, scale: float, *, smooth: bool = True
) -> tuple[NDArray[np.uint8], Instances]:
    """Return copies of image and instances, resized; at scale 1 only the image is copied."""
    if scale == 1:
        return image.copy(), instances
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(image, size[::-1], interpolation=kind)
    # Interpolation smooths mask borders, but would break thin contours.
    masks = crops_of(instances.pred_masks).to("cpu").resized(size, smooth=smooth)
    fields = {
        name: instances.get(name) for name in ("pred_classes", "scores") if instances.has(name)
    }
    boxes = Boxes(masks.boxes())
    return picture.astype(np.uint8), Instances(size, pred_masks=masks, pred_boxes=boxes, **fields)


def lay_masks(
    stuff: Instances, instances: Instances
) -> tuple[NDArray[np.uint8 | np.int32], list[int], LabelRoom]:
    """Stack masks: stuff, then instances by decreasing box area.

    Returns:
        (H, W) number of the visible mask at each pixel, from 1, 0 for none; the masks by number,
        as indices into stuff and instances together; and the room for labels.
    """
    masks, boxes = instances.pred_masks, instances.pred_boxes.tensor
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    by_size = areas.argsort(descending=True, stable=True)
    order = [*range(len(stuff)), *(len(stuff) + index for index in by_size.tolist())]
    if len(stuff):
        masks = _join(stuff.pred_masks, masks)
        boxes = torch.cat([stuff.pred_boxes.tensor, boxes])
    on_top = stack_masks(masks, boxes, order).cpu().numpy()
    room = LabelRoom(on_top, [math.inf] * len(stuff) + areas[by_size].tolist())
    return on_top, order, room


def _join(a: Tensor | MaskCrops, b: Tensor | MaskCrops) -> Tensor | MaskCrops:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.cat([a, b])
    return join_crops([crops_of(a), crops_of(b)], a.shape[1:], a.device)
