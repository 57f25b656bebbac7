"""Draw overlays for print with Detectron2's Visualizer: slow, with sharp lines at any scale."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from solo_d2.ops.mask_crops import whole_masks
from solo_d2.visualization.colors import Color, instance_color, stuff_color
from solo_d2.visualization.labels import LabelRoom
from solo_d2.visualization.overlay import has_labels, instance_labels, lay_masks, stuff_labels

# Height of a line and width of a letter, in pixels per point of the font size.
_LINE_HEIGHT, _LETTER_WIDTH = 2.1, 0.85


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
    """Draw like `overlay.draw_instances`; instances and stuff must be on the CPU.

    Returns:
        About (scale * H, scale * W, 3) uint8, RGB; the plain image without instances and stuff.
    """
    visualizer = Visualizer(image, scale=scale)
    if stuff is not None and len(stuff):
        ground = [stuff_color(label) for label in stuff.pred_classes.tolist()]
        _draw_masks(visualizer, _to_generic_masks(stuff), ground)
        names, points = stuff_labels(stuff, stuff_names)
        _draw_labels(visualizer, points, names, ground)
    if len(instances):
        if colors is None:
            colors = [instance_color(index) for index in range(len(instances))]
        if contours:
            _draw_contours(visualizer, whole_masks(instances.pred_masks).numpy(), colors)
        else:
            _draw_masks(visualizer, _to_generic_masks(instances), colors)
        if draw_boxes:
            visualizer.overlay_instances(boxes=instances.pred_boxes, assigned_colors=colors)
        if has_labels(labels, class_names):
            texts = instance_labels(instances, class_names)
            boxes = instances.pred_boxes.tensor.numpy()
            room = lay_masks(instances[:0], instances)[-1] if labels == "auto" else None
            _draw_labels(visualizer, boxes, texts, colors, room=room)
    return visualizer.get_output().get_image()


def _draw_masks(
    visualizer: Visualizer, masks: Sequence[GenericMask], colors: Sequence[Color]
) -> None:
    """Fill masks except for their holes, the largest first, and draw their outlines."""
    for index in np.argsort([-float(mask.area()) for mask in masks], kind="stable"):
        mask, color = masks[index], colors[index]
        if not mask.has_holes:
            for polygon in mask.polygons:
                visualizer.draw_polygon(polygon.reshape(-1, 2), color, alpha=0.5)
            continue
        # Detectron2 keeps holes only in bitmaps, which it draws without outline.
        visualizer.draw_binary_mask(mask.mask, color, area_threshold=0)
        for polygon in mask.polygons:
            x, y = np.append(polygon, polygon[:2]).reshape(-1, 2).T
            visualizer.draw_line(x, y, color=color)


def _draw_contours(
    visualizer: Visualizer, contours: NDArray[np.bool_], colors: Sequence[Color]
) -> None:
    """Draw contours one pixel wide as lines, which stay sharp at any scale."""
    for contour, color in zip(contours, colors, strict=True):
        # OpenCV finds both sides of a line; draw the outer one.
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
    *,
    room: LabelRoom | None = None,
) -> None:
    """Write each label above its instance, or inside if there is no room.

    With `room`, labels without a free place there are skipped.
    """
    output = visualizer.output
    # In points of the result, since Detectron2 multiplies the font size by the scale.
    font_size = max(9.0, math.sqrt(output.height * output.width) * output.scale / 90)
    line = _LINE_HEIGHT * font_size / output.scale
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in np.argsort(-areas, kind="stable"):
        x0, y0 = boxes[index, :2].tolist()
        length = _LETTER_WIDTH * font_size / output.scale * len(labels[index])
        x = max(0.0, min(x0, output.width - length))
        y = y0 - line if y0 >= line else y0
        if room is not None:
            place = room.take(boxes[index], [(math.ceil(line), math.ceil(length))])
            if place is None:
                continue
            x, y = place[1:]
        visualizer.draw_text(
            labels[index],
            (x, y),
            font_size=font_size / output.scale,
            color=colors[index],
            horizontal_alignment="left",
        )


def _to_generic_masks(instances: Instances) -> list[GenericMask]:
    height, width = instances.image_size
    masks = list(whole_masks(instances.pred_masks).numpy())
    if width == 2:  # Detectron2 would interpret such an array as points
        masks = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return [GenericMask(mask, height, width) for mask in masks]
