"""Instances drawn over images, and as COCO results: NumPy and OpenCV alone.

N instances of an image, H W its rows and columns.
"""

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Hues that follow each other at this step never repeat and stay apart (golden ratio).
HUE_STEP = 0.618034


def instance_color(index: int) -> tuple[float, float, float]:
    """A colour for the instance of this index, RGB in [0, 1]; neighbours look different."""
    lightness = (0.55, 0.42, 0.66)[index % 3]
    return colorsys.hls_to_rgb((0.58 + index * HUE_STEP) % 1.0, lightness, 0.85)


def draw_instances(
    image: NDArray[np.uint8], found: dict[str, NDArray[Any]], class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw masks with their outline, class and score over an image, as the demo does.

    Args:
        image: (H, W, 3) uint8 BGR.
        found: what `Detector` found in it.
        class_names: of the K classes. OpenCV's font has ASCII alone.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    picture = image.copy()
    colors = [_bgr(instance_color(index)) for index in range(len(found["scores"]))]
    thickness = max(1, round(min(image.shape[:2]) / 400))
    for index in np.argsort([-int(mask.sum()) for mask in found["masks"]], kind="stable"):
        mask = found["masks"][index]
        picture[mask] = (picture[mask] + np.float32(colors[index])) / 2
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colors[index], thickness)
    labels = zip(found["classes"].tolist(), found["scores"].tolist(), strict=True)
    for box, color, (label, score) in zip(found["boxes"], colors, labels, strict=True):
        _draw_label(picture, f"{class_names[label]} {score:.0%}", box, color)
    return picture


def _bgr(color: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in color)
    return blue, green, red


def _draw_label(
    picture: NDArray[np.uint8], text: str, box: NDArray[np.float32], color: tuple[int, int, int]
) -> None:
    """Above its instance, or in it, but never across the border of the image."""
    height, width = picture.shape[:2]
    scale = max(0.4, (height * width) ** 0.5 / 1500)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(1.5 * scale))
    (length, ascent), descent = cv2.getTextSize(text, font, scale, thickness)
    x = int(max(0, min(box[0], width - length)))
    top = int(box[1]) - ascent - descent
    top = top if top >= 0 else int(box[1])
    cv2.rectangle(picture, (x, top), (x + length, top + ascent + descent), (0, 0, 0), cv2.FILLED)
    light = [int(255 - (255 - value) * 0.6) for value in color]
    cv2.putText(picture, text, (x, top + ascent), font, scale, light, thickness, cv2.LINE_AA)


def coco_results(
    found: dict[str, NDArray[Any]], image_id: int, file_name: str, class_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Describe the instances of an image as COCO results, each also with the name of its image.

    Args:
        found: what `Detector` found.
        image_id: the image's number.
        file_name: its name.
        class_ids: category id of each class.

    Returns:
        Dicts with image_id, file_name, category_id, bbox (XYWH), score and segmentation (RLE).
    """
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": class_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
            "segmentation": encode_mask(mask),
        }
        for label, score, (x0, y0, x1, y1), mask in zip(
            found["classes"].tolist(),
            found["scores"].tolist(),
            found["boxes"].tolist(),
            found["masks"],
            strict=True,
        )
    ]


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run lengths: {"size": [H, W], "counts": text}.

    The runs go down the columns, the first one counts zeros. From the fourth on each is given by
    its difference to the one two before it, in groups of 5 bits, the lowest first, one letter each;
    the sixth bit says that more follow.
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
    """A number of COCO's compressed run lengths."""
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        # The highest of the 5 bits is the sign of what is left out.
        if value == (-1 if bits & 16 else 0):
            return text + chr(48 + bits)
        text += chr(48 + 32 + bits)
