"""COCO files from a folder of images and their labels, as labelling tools leave them.

Two kinds of labels are read, for each image whichever is there:

    labels/street.json                         labelme, for the image street.jpg
    labels/street/car_1.png, red_car_2.png     a mask for each object; the class is what comes
                                               before the last _, pixels other than 0 are the object

An image without labels has no objects. The result is two json files in COCO format.
"""

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.coco_json import some
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.problems import Refusal
from solo_d2.data.segmentations import clean_segmentation
from solo_d2.errors import DatasetError
from solo_d2.files import save_text

IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# EXIF's tag of the orientation, and its values that turn an image by a quarter.
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
# What Pillow raises for files that are damaged, or huge when unpacked.
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Corners of the polygon that stands for a circle.
CIRCLE_CORNERS = 64


@dataclass(frozen=True)
class LabelledImage:
    """An image and its objects.

    Attributes:
        file_name: relative to the folder of the images.
        size: height and width, upright.
        objects: class name and COCO's fields of each object.
    """

    file_name: str
    size: tuple[int, int]
    objects: list[tuple[str, dict[str, Any]]]


def read_labelled_folder(images: Path, labels: Path) -> list[LabelledImage]:
    """Read all images of a folder and their labels.

    Args:
        images: folder of the images; its subfolders are not searched.
        labels: folder of the labels; may be the same.

    Returns:
        One entry per image, by file name.

    Raises:
        DatasetError: there is no image, labels belong to none, or a label cannot be used; the
            message names the file.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise DatasetError(f"The folder {folder.absolute()} does not exist")
    files = sorted(file for file in images.iterdir() if file.suffix.lower() in IMAGE_EXTENSIONS)
    if not files:
        raise DatasetError(f"{images.absolute()} has no images ({' '.join(IMAGE_EXTENSIONS)})")
    stems = [file.stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DatasetError(f"{images}: several images are called {some(twice)}: rename them")
    labelled = {p.stem for p in labels.glob("*.json")} | {p.parent.name for p in labels.glob("*/*")}
    strays = sorted(labelled - set(stems)) if labels != images else []
    if strays:
        raise DatasetError(f"{labels}: there are labels, but no image, for {some(strays)}")
    return [_read_image(file, labels) for file in files]


def split_images(
    images: Sequence[LabelledImage], val_fraction: float
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Divide images into those to train on and those to evaluate on.

    The choice follows from the file names alone, so that an image keeps its part when others are
    added; both parts get at least one image.

    Args:
        images: at least two.
        val_fraction: share of the second part, between 0 and 1.
    """
    if len(images) < 2:
        raise DatasetError("There must be two images at least, one of them to evaluate on")
    order = sorted(images, key=lambda i: hashlib.sha256(i.file_name.encode()).digest())
    count = min(max(1, round(val_fraction * len(order))), len(order) - 1)
    parts = order[count:], order[:count]
    train, val = (sorted(part, key=lambda image: image.file_name) for part in parts)
    return train, val


def write_coco(file: Path, images: Sequence[LabelledImage], class_names: Sequence[str]) -> None:
    """Write images and their objects in COCO format, whole or not at all.

    Args:
        file: the json.
        images: of one part.
        class_names: of both parts, in the order of their ids, which start at 1.
    """
    ids = {name: index + 1 for index, name in enumerate(class_names)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        height, width = image.size
        entries.append(
            {"id": number, "file_name": image.file_name, "height": height, "width": width}
        )
        for name, fields in image.objects:
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[name]}
            annotations.append({**annotation, **fields})
    categories = [{"id": key, "name": name} for name, key in ids.items()]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    save_text(file, json.dumps(content))


def class_names_of(images: Iterable[LabelledImage]) -> list[str]:
    """All classes, by name."""
    names = sorted({name for image in images for name, _ in image.objects})
    if not names:
        raise DatasetError("None of the images has a labelled object")
    return names


def _read_image(file: Path, labels: Path) -> LabelledImage:
    size = _upright_size(file)
    json_file, folder = labels / f"{file.stem}.json", labels / file.stem
    objects: list[tuple[str, dict[str, Any]]] = []
    if json_file.is_file():
        objects += _read_labelme(json_file, size)
    if folder.is_dir():
        objects += [_read_mask(mask, size) for mask in sorted(folder.glob("*.png"))]
    return LabelledImage(file.name, size, objects)


def _upright_size(file: Path) -> tuple[int, int]:
    """Height and width as training reads the image: turned as its EXIF says."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in QUARTER_TURNS
    except _DAMAGE as error:
        raise DatasetError(f"{file} cannot be read as an image: {error}") from error
    return (width, height) if turned else (height, width)


def _read_mask(file: Path, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """Class and fields of the object in a PNG."""
    mask = _decode_mask(file, file)
    if mask.shape != size:
        raise DatasetError(
            f"{file} has {_words(mask.shape)} pixels (height x width), its image has {_words(size)}"
        )
    return file.stem.rpartition("_")[0] or file.stem, _fields_of_mask(file, mask)


def _decode_mask(source: Any, name: Path) -> NDArray[np.bool_]:
    """(H, W): pixels other than 0, or than transparent where that is all they tell."""
    try:
        with Image.open(source) as image:
            pixels = np.asarray(image)
            has_alpha = image.mode in ("LA", "RGBA")
    except _DAMAGE as error:
        raise DatasetError(f"{name} cannot be read as a mask: {error}") from error
    if pixels.ndim == 2:
        return pixels != 0
    return np.asarray((pixels[..., :-1] if has_alpha else pixels).any(axis=2))


def _fields_of_mask(file: Path, mask: NDArray[np.bool_]) -> dict[str, Any]:
    if not mask.any():
        raise DatasetError(f"{file} has an object without a pixel: delete it")
    return describe_mask(mask)


def _read_labelme(file: Path, size: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Classes and fields of the objects in a json of labelme; a group_id joins parts of one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        shapes = content["shapes"]
        told = content.get("imageHeight"), content.get("imageWidth")
        groups: dict[Any, list[dict[str, Any]]] = {}
        for index, shape in enumerate(shapes):
            group = shape.get("group_id")
            key = (shape["label"], index if group is None else f"group {group}")
            groups.setdefault(key, []).append(shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{file} is no json of labelme: {type(error).__name__}: {error}"
        ) from error
    if None not in told and told != size:
        raise DatasetError(
            f"{file} is of an image of {_words(told)} pixels (height x width), its image has "
            f"{_words(size)}"
        )
    return [(str(label), _merge(file, parts, size)) for (label, _), parts in groups.items()]


def _merge(file: Path, shapes: Sequence[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's fields of an object: polygons as they are, unless a part of it is a mask."""
    given = [_polygon(file, s) for s in shapes if s.get("shape_type") != "mask"]
    try:
        polygons = clean_segmentation(given, *size)
    except Refusal as error:
        raise DatasetError(f"{file}: {error}") from error
    masks = [_pasted_mask(file, s, size) for s in shapes if s.get("shape_type") == "mask"]
    rle = None
    if polygons:
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    if masks:
        drawn = [coco_mask.decode(rle).astype(bool)] if rle else []
        return _fields_of_mask(file, np.logical_or.reduce([*drawn, *masks]))
    if rle is None or int(coco_mask.area(rle)) == 0:
        raise DatasetError(f"{file} has an object without a pixel in the image: delete it")
    return {
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": polygons,
    }


def _polygon(file: Path, shape: dict[str, Any]) -> list[float]:
    """The corners x, y, x, y, ... of a shape."""
    kind = shape.get("shape_type", "polygon")
    points = _points(file, shape)
    if kind == "polygon" and len(points) >= 3:
        corners = points
    elif kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * index / CIRCLE_CORNERS for index in range(CIRCLE_CORNERS)]
        corners = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    else:
        raise DatasetError(
            f"{file}: a {kind} of {len(points)} points, labelled {shape['label']!r}, has no area; "
            "polygons, rectangles, circles and masks do"
        )
    return [round(float(value), 3) for corner in corners for value in corner]


def _pasted_mask(file: Path, shape: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask that labelme keeps as a PNG of its box."""
    points = _points(file, shape)
    try:
        data = io.BytesIO(base64.b64decode(shape["mask"], validate=True))
    except (KeyError, TypeError, binascii.Error) as error:
        raise DatasetError(f"{file}: the mask of a shape cannot be decoded: {error}") from error
    mask = _decode_mask(data, file)
    left, top = (round(value) for value in points[0])
    result = np.zeros(size, dtype=bool)
    part = result[max(0, top) : top + mask.shape[0], max(0, left) : left + mask.shape[1]]
    if part.shape != mask.shape:
        raise DatasetError(f"{file}: the mask of a shape reaches beyond the image")
    part[:] = mask
    return result


def _points(file: Path, shape: dict[str, Any]) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{file}: the points of a shape cannot be read: {error}") from error
    if not points or not all(math.isfinite(value) for point in points for value in point):
        raise DatasetError(f"{file}: a shape has no points, or infinite ones")
    return points


def _words(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
