"""Overlays of instances, and COCO results, with NumPy and OpenCV only.

N instances of an image, H W its rows and columns.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2.visualization.colors import Color, instance_color
from solo_d2.visualization.labels import LabelRoom
from solo_d2.visualization.painting import paint


def draw_instances(
    image: NDArray[np.uint8], found: dict[str, NDArray[Any]], class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw masks with their outline, class and score over an image.

    As `solo_d2.visualization.overlay` does, but in OpenCV's font, which has ASCII alone. Instances
    of the only class of a model, and those without room for their text, have no label.

    Args:
        image: (H, W, 3) uint8 BGR.
        found: results of `Detector`.
        class_names: names of the K classes.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    picture = image.copy()
    boxes = found["boxes"]
    colors = [instance_color(index)[::-1] for index in range(len(boxes))]
    sides = boxes[:, 2:] - boxes[:, :2]
    largest_first = np.argsort(-sides.prod(axis=1), kind="stable")
    on_top = np.zeros(image.shape[:2], np.uint8 if len(boxes) <= 255 else np.int32)
    for number, index in enumerate(largest_first, start=1):
        on_top[found["masks"][index]] = number
    paint(picture, on_top, [colors[index] for index in largest_first], filled=True)
    room = LabelRoom(on_top, sides.prod(axis=1)[largest_first].tolist())
    for index in largest_first if len(class_names) > 1 else ():
        name, score = class_names[found["classes"][index]], found["scores"][index]
        _write(picture, f"{name} {score:.0%}", boxes[index], colors[index], room)
    return picture


def _write(
    picture: NDArray[np.uint8],
    text: str,
    box: NDArray[np.float32],
    color: Color,
    room: LabelRoom,
) -> None:
    """Write a label above, in or below its instance, if there is room."""
    height, width = picture.shape[:2]
    scale = max(0.4, (height * width) ** 0.5 / 1800)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(1.5 * scale))
    (length, ascent), descent = cv2.getTextSize(text, font, scale, thickness)
    place = room.take(box, [(ascent + descent, length)])
    if place is None:
        return
    _, x, top = place
    ground = [255 * value for value in color]
    cv2.rectangle(picture, (x, top), (x + length, top + ascent + descent), ground, cv2.FILLED)
    ink = (0, 0, 0) if sum(color) / 3 > 0.55 else (255, 255, 255)
    cv2.putText(picture, text, (x, top + ascent), font, scale, ink, thickness, cv2.LINE_AA)


def coco_results(
    found: dict[str, NDArray[Any]], image_id: int, file_name: str, class_ids: Sequence[Any]
) -> list[dict[str, Any]]:
    """Convert results of `Detector` for an image to COCO results, with the name of its file.

    Returns:
        Dicts with image_id, file_name, category_id, bbox (XYWH), score and segmentation (RLE).
    """
    columns = [found[name].tolist() for name in ("classes", "scores", "boxes")]
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": class_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
            "segmentation": encode_mask(mask),
        }
        for label, score, (x0, y0, x1, y1), mask in zip(*columns, found["masks"], strict=True)
    ]


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask (H, W) as COCO's compressed run lengths: {"size": [H, W], "counts": text}.

    Runs are column-major and start with zeros. From the fourth on, each is encoded as the
    difference to the run two before, in groups of 5 bits, lowest first, one letter each; the sixth
    bit marks continuation.
    """
    pixels = mask.T.reshape(-1)
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(ends, prepend=0, append=pixels.size)
    if pixels[:1].any():
        runs = np.concatenate([[0], runs])
    values = runs.copy()
    values[3:] -= runs[1:-2]
    return {"size": list(mask.shape), "counts": "".join(map(_letters, values.tolist()))}


def _letters(value: int) -> str:
    """Encode a number of COCO's compressed run lengths."""
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        # The highest of the 5 bits is the sign.
        if value == (-1 if bits & 16 else 0):
            return text + chr(48 + bits)
        text += chr(48 + 32 + bits)
