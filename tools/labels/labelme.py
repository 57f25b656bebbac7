"""Read objects from the JSON files of labelme and its forks."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.coco_json import load_json
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.problems import Refusal
from solo_d2.data.segmentations import clean_segmentation, polygon_defect
from solo_d2.utils.errors import DatasetError, first_line, shown

# Errors of Pillow for damaged files, and for decompression bombs.
DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Pillow's modes of pixels that are no values.
_PLAIN_MODES = {"1": "L", "P": "RGBA", "PA": "RGBA"}
# Largest values of masks of 8 and 16 bits.
_WHITE = (255, 65535)
# Corners of the polygon that approximates a circle.
CIRCLE_CORNERS = 64
# Shapes whose points, if three or more, are the corners of a polygon. labelme has the first two
# (rectangles have two corners); its forks write four, possibly rotated.
POLYGON_KINDS = ("polygon", "rectangle", "rotation", "oriented_rectangle", "quadrilateral")
LINE_KINDS = ("point", "points", "line", "linestrip")
# Area of a shape: a polygon x, y, x, y, ... or a mask (H, W).
_Part = list[float] | NDArray[np.bool_]


def decode_mask(source: Any, name: Path | str) -> NDArray[np.bool_]:
    """Return (H, W) bool: pixels that are neither black nor transparent.

    Raises DatasetError if the file is unreadable, or a map of several objects: values or colors
    without white, which soft borders would end in.
    """
    try:
        with Image.open(source) as image:
            plain = image.convert(_PLAIN_MODES.get(image.mode, image.mode))
            pixels, has_alpha = np.atleast_3d(np.asarray(plain)), plain.mode in ("LA", "RGBA")
    except DAMAGE as error:
        raise DatasetError(f"{name} cannot be read as a mask: {error}") from error
    if has_alpha:
        pixels = pixels[..., :-1] * (pixels[..., -1:] != 0)
    mask = np.asarray(pixels.any(axis=2))
    inside = pixels[mask]
    if len(inside) and inside.max() not in _WHITE and (inside != inside[0]).any():
        raise DatasetError(f"{name} has several values, as a map of objects: write a PNG of each")
    return mask


def read_labelme(
    file: Path, size: tuple[int, int], problems: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return classes and fields of the objects in a labelme JSON; a group_id merges shapes.

    Appends unusable shapes to the problems; raises DatasetError if the whole file is unusable.
    """
    try:
        content = load_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not a labelme JSON: {first_line(error)}") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise DatasetError(f"{file} is not a labelme JSON: it has no list 'shapes'")
    _require_size(file, content, size)
    groups: dict[tuple[str, str], dict[int, _Part]] = {}
    for index, shape in enumerate(shapes):
        try:
            label, part = _read_shape(shape, size)
        except (DatasetError, Refusal) as error:
            problems.append(f"{file}: shape {index}: {error}")
            continue
        group = shape.get("group_id")
        key = label, f"shape {index}" if group is None else f"group {group}"
        groups.setdefault(key, {})[index] = part
    objects = []
    for (label, _), parts in groups.items():
        fields = _merge(list(parts.values()), size)
        if fields["area"]:
            objects.append((label, fields))
        else:
            where = ", ".join(map(str, parts))
            problems.append(f"{file}: shape {where}: {label!r} has no pixels in the image")
    return objects


def _require_size(file: Path, content: dict[str, Any], size: tuple[int, int]) -> None:
    given: list[Any] = [content.get("imageHeight"), content.get("imageWidth")]
    if None in given:
        return
    try:
        same = [float(length) for length in given] == list(size)
    except (TypeError, ValueError):
        same = False
    if not same:
        turned = given[::-1] == list(size)
        raise DatasetError(
            f"{file} is for an image of {words(given)} pixels (height x width), but its image has "
            f"{words(size)}" + (". If EXIF rotates it, label the upright image" if turned else "")
        )


def _read_shape(shape: Any, size: tuple[int, int]) -> tuple[str, _Part]:
    """Return the class and the polygon or mask of a shape; DatasetError or Refusal if bad."""
    if not isinstance(shape, dict):
        raise DatasetError(f"it must be an object, not {shown(shape)}")
    label = shape.get("label")
    if not isinstance(label, str | int | float) or not str(label).strip():
        raise DatasetError("'label' must be a non-empty text")
    label = str(label).strip()
    points = _points(shape)
    if shape.get("shape_type") == "mask" or (shape.get("mask") and len(points) < 3):
        return label, _pasted_mask(shape, points, size)
    polygon = _polygon(str(shape.get("shape_type") or "polygon"), label, points)
    if not clean_segmentation([polygon], *size):
        raise DatasetError(f"labelled {label!r}, it has {polygon_defect(polygon)}")
    return label, polygon


def _polygon(kind: str, label: str, points: Sequence[tuple[float, float]]) -> list[float]:
    corners = points
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * index / CIRCLE_CORNERS for index in range(CIRCLE_CORNERS)]
        corners = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    elif kind not in POLYGON_KINDS or len(points) < 3:
        what = f"of {len(points)} points, labelled {label!r},"
        if kind in POLYGON_KINDS or kind in LINE_KINDS:
            raise DatasetError(f"a {kind} {what} has no area")
        raise DatasetError(
            f"{kind!r} {what} is not supported; use {', '.join(POLYGON_KINDS)} of at least three "
            "points, rectangle and circle of two, or mask"
        )
    return [round(value, 3) for corner in corners for value in corner]


def _pasted_mask(
    shape: dict[str, Any], points: Sequence[tuple[float, float]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return a mask that labelme stores as a PNG of its box."""
    try:
        data = io.BytesIO(base64.b64decode(shape["mask"], validate=True))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"its mask cannot be decoded: {first_line(error)}") from error
    mask = decode_mask(data, "its PNG")
    left, top = (round(value) for value in points[0])
    result = np.zeros(size, dtype=bool)
    part = result[max(0, top) : top + mask.shape[0], max(0, left) : left + mask.shape[1]]
    if part.shape != mask.shape:
        raise DatasetError("its mask exceeds the image")
    if not mask.any():
        raise DatasetError("its mask is empty")
    part[:] = mask
    return result


def _points(shape: dict[str, Any]) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"its points cannot be read: {first_line(error)}") from error
    if not points or not all(math.isfinite(value) for point in points for value in point):
        raise DatasetError("it has no points, or non-finite ones")
    return points


def _merge(parts: Sequence[_Part], size: tuple[int, int]) -> dict[str, Any]:
    """Return COCO's fields of an object: polygons unchanged, unless a part is a mask."""
    polygons = [part for part in parts if isinstance(part, list)]
    masks = [part for part in parts if not isinstance(part, list)]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size)) if polygons else None
    if masks:
        drawn = [coco_mask.decode(rle).astype(bool)] if rle else []
        return describe_mask(np.logical_or.reduce([*drawn, *masks]))
    return {
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": polygons,
    }


def words(size: Sequence[Any]) -> str:
    """Format a size for messages, such as 20 x 30."""
    return " x ".join(map(str, size))
