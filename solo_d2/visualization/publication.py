"""Overlays for print, by Detectron2's Visualizer: sharp lines at any scale, and slow.

The functions take and give what those of `solo_d2.visualization.overlay` do.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from solo_d2.visualization.colors import Color, instance_color, stuff_color
from solo_d2.visualization.overlay import deepest_point, instance_labels

# Height of a line and width of a letter, in pixels for each point of the font size.
_LINE_HEIGHT, _LETTER_WIDTH = 2.1, 0.85


def draw_instances(
    image: NDArray[np.uint8],
    instances: Instances,
    class_names: Sequence[str],
    *,
    scale: float = 1.0,
    draw_boxes: bool = False,
    colors: Sequence[Color] | None = None,
    contours: bool = False,
) -> NDArray[np.uint8]:
    """Draw masks with their outline, class and score over an image, see `overlay`.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: on the CPU.
        class_names: of the K classes.
        scale: see `overlay.draw_instances`, also for the others.
        draw_boxes: likewise.
        colors: likewise.
        contours: whether the masks are contours, to be drawn as lines.

    Returns:
        About (scale * H, scale * W, 3) uint8, RGB; the image alone where there are no instances.
    """
    visualizer = Visualizer(image, scale=scale)
    if colors is None:
        colors = [instance_color(index) for index in range(len(instances))]
    _overlay_instances(
        visualizer, instances, class_names, colors, draw_boxes=draw_boxes, contours=contours
    )
    return visualizer.get_output().get_image()


def draw_panoptic(
    image: NDArray[np.uint8],
    things: Instances,
    stuff: Instances,
    class_names: Sequence[str],
    stuff_names: Sequence[str],
    *,
    scale: float = 1.0,
    draw_boxes: bool = False,
    colors: Sequence[Color] | None = None,
) -> NDArray[np.uint8]:
    """Draw a panoptic segmentation over an image, see `overlay.draw_panoptic`.

    `things` and `stuff` are on the CPU. The result is about (scale * H, scale * W, 3).
    """
    visualizer = Visualizer(image, scale=scale)
    if len(stuff):
        labels = stuff.pred_classes.tolist()
        stuff_colors = [stuff_color(label) for label in labels]
        _draw_masks(visualizer, _to_generic_masks(stuff), stuff_colors)
        points = [deepest_point(mask) for mask in stuff.pred_masks.numpy()]
        boxes = np.array([(x, y, x, y) for x, y in points], dtype=np.float32)
        names = [stuff_names[label] for label in labels]
        _draw_labels(visualizer, boxes, names, stuff_colors)
    if colors is None:
        colors = [instance_color(index) for index in range(len(things))]
    _overlay_instances(visualizer, things, class_names, colors, draw_boxes=draw_boxes)
    return visualizer.get_output().get_image()


def _overlay_instances(
    visualizer: Visualizer,
    instances: Instances,
    class_names: Sequence[str],
    colors: Sequence[Color],
    *,
    draw_boxes: bool,
    contours: bool = False,
) -> None:
    """Draw instances on what is there already."""
    if len(instances):
        if contours:
            _draw_contours(visualizer, instances.pred_masks.numpy(), colors)
        else:
            _draw_masks(visualizer, _to_generic_masks(instances), colors)
        if draw_boxes:
            visualizer.overlay_instances(boxes=instances.pred_boxes, assigned_colors=colors)
        labels = instance_labels(instances, class_names)
        _draw_labels(visualizer, instances.pred_boxes.tensor.numpy(), labels, colors)


def _draw_masks(
    visualizer: Visualizer,
    masks: Sequence[GenericMask],
    colors: Sequence[Color],
) -> None:
    """Fill masks, the largest first, and draw their outlines; holes stay open."""
    for index in np.argsort([-float(mask.area()) for mask in masks], kind="stable"):
        mask, color = masks[index], colors[index]
        if not mask.has_holes:
            for polygon in mask.polygons:
                visualizer.draw_polygon(polygon.reshape(-1, 2), color, alpha=0.5)
            continue
        # Detectron2 leaves holes open only in bitmaps, which have no outline.
        visualizer.draw_binary_mask(mask.mask, color, area_threshold=0)
        for polygon in mask.polygons:
            x, y = np.append(polygon, polygon[:2]).reshape(-1, 2).T
            visualizer.draw_line(x, y, color=color)


def _draw_contours(
    visualizer: Visualizer,
    contours: NDArray[np.bool_],
    colors: Sequence[Color],
) -> None:
    """Draw contours of one pixel's width as lines, which stay sharp in a larger picture."""
    for contour, color in zip(contours, colors, strict=True):
        # Of each line the outer side alone.
        lines, tree = cv2.findContours(
            contour.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        for line, (_, _, _, parent) in zip(lines, [] if tree is None else tree[0], strict=True):
            if parent < 0:
                x, y = np.append(line, line[:1], axis=0)[:, 0].T + 0.5
                visualizer.draw_line(x, y, color=color)


def _draw_labels(
    visualizer: Visualizer,
    boxes: NDArray[np.float32],
    labels: Sequence[str],
    colors: Sequence[Color],
) -> None:
    """Write each label above its instance, or in it, but never across the border of the image."""
    output = visualizer.output
    # In points of the result; Detectron2 multiplies by the scale.
    font_size = max(9.0, math.sqrt(output.height * output.width) * output.scale / 90)
    line = _LINE_HEIGHT * font_size / output.scale
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in np.argsort(-areas, kind="stable"):
        x0, y0 = boxes[index, :2].tolist()
        length = _LETTER_WIDTH * font_size / output.scale * len(labels[index])
        x = max(0.0, min(x0, output.width - length))
        y = y0 - line if y0 >= line else y0
        visualizer.draw_text(
            labels[index],
            (x, y),
            font_size=font_size / output.scale,
            color=colors[index],
            horizontal_alignment="left",
        )


def _to_generic_masks(instances: Instances) -> list[GenericMask]:
    return [_to_generic_mask(m, *instances.image_size) for m in instances.pred_masks.numpy()]


def _to_generic_mask(mask: NDArray[np.bool_], height: int, width: int) -> GenericMask:
    if width == 2:  # Detectron2 takes such an array for points and refuses it
        return GenericMask(coco_mask.encode(np.asfortranarray(mask, np.uint8)), height, width)
    return GenericMask(mask, height, width)
