"""COCO files from a folder of images and their labels, as labelling tools leave them.

Two kinds of labels are read, for each image whichever is there:

    labels/street.json                         labelme, for the image street.jpg
    labels/street/car_1.png, red_car_2.png     a mask for each object; the class is what comes
                                               before the last _, pixels other than 0 are the object

An image without labels has no objects. The result is two json files in COCO format.
"""

import base64
import contextlib
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.coco_json import load_json, some
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.problems import Refusal
from solo_d2.data.segmentations import clean_segmentation, polygon_defect
from solo_d2.utils.errors import DatasetError, first_line, shown
from solo_d2.utils.files import save_text
from solo_d2.utils.images import EXTENSIONS

# EXIF's tag of the orientation, and its values that turn an image by a quarter.
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
# What Pillow raises for files that are damaged, or huge when unpacked.
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Corners of the polygon that stands for a circle.
CIRCLE_CORNERS = 64
# Shapes whose points, if there are three or more, are the corners of a polygon. labelme has the
# first two, rectangles with two corners; its forks write four, turned or not.
POLYGON_KINDS = ("polygon", "rectangle", "rotation", "oriented_rectangle", "quadrilateral")
LINE_KINDS = ("point", "points", "line", "linestrip")
# Lines of a message that name a label each.
_LISTED = 50
# What one shape covers: a polygon x, y, x, y, ... or a mask (H, W).
_Part = list[float] | NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledImage:
    """An image and its objects."""

    file_name: str  # relative to the folder of the images
    size: tuple[int, int]  # height and width, upright
    objects: list[tuple[str, dict[str, Any]]]  # class name and COCO's fields


def read_labelled_folder(images: Path, labels: Path) -> list[LabelledImage]:
    """Read all images of a folder and their labels.

    Args:
        images: folder of the images; its subfolders are not searched.
        labels: folder of the labels; may be the same.

    Returns:
        One entry per image, by file name.

    Raises:
        DatasetError: there is no image, or labels or images cannot be used; the message lists all
            of them, up to `_LISTED` lines.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise DatasetError(f"The folder {folder.absolute()} does not exist")
    files = [f for f in _visible(images) if f.suffix.lower() in EXTENSIONS and f.is_file()]
    if not files:
        raise DatasetError(f"{images.absolute()} has no images ({' '.join(sorted(EXTENSIONS))})")
    counts = Counter(file.stem for file in files)
    twice = sorted(stem for stem, count in counts.items() if count > 1)
    if twice:
        raise DatasetError(
            f"{images}: several images are called {some(twice)}, so it is unknown whose labels are "
            "whose: rename them, and their labels"
        )
    strays = (p for p in _strays(labels, counts) if labels != images or not p.is_dir())
    problems = [f"{stray}: there is no image of that name" for stray in strays]
    found = [_read_image(file, labels, problems) for file in files]
    if problems:
        more = len(problems) - _LISTED
        lines = problems[:_LISTED] + ([f"... and {more} more"] if more > 0 else [])
        raise DatasetError(
            f"{len(problems)} labels or images cannot be used, so nothing is written. Correct or "
            "delete them (shapes are counted from 0, as in the file):"
            + "".join(f"\n  {line}" for line in lines)
        )
    return found


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, less the hidden files that systems and editors leave."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _strays(labels: Path, stems: Container[str]) -> Iterator[Path]:
    """Labels that belong to no image; other json files, as this command's own, are no labels."""
    for path in _visible(labels):
        if path.is_dir():
            if path.name not in stems and any(file.suffix in EXTENSIONS for file in _visible(path)):
                yield path
        elif path.suffix == ".json" and path.stem not in stems:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                content = load_json(path)
                if isinstance(content, dict) and "shapes" in content:
                    yield path


def split_images(
    images: Sequence[LabelledImage], val_fraction: float
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Divide images into those to train on and those to evaluate on.

    The choice follows from the file names alone, so that an image keeps its part when others are
    added; both parts get at least one image. `val_fraction` is the share of the second part.
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

    The ids of the classes start at 1, in the order of their names.
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


def _read_image(file: Path, labels: Path, problems: list[str]) -> LabelledImage:
    """An image with its objects; what cannot be used is added to the problems."""
    json_file, folder = labels / f"{file.stem}.json", labels / file.stem
    objects: list[tuple[str, dict[str, Any]]] = []
    size = 0, 0
    try:
        size = _upright_size(file)
        if json_file.is_file():
            objects += _read_labelme(json_file, size, problems)
    except DatasetError as error:
        problems.append(str(error))
    for mask in _visible(folder) if size[0] and folder.is_dir() else ():
        try:
            if mask.suffix.lower() == ".png":
                objects.append(_read_mask(mask, size))
            elif mask.suffix.lower() in EXTENSIONS:
                raise DatasetError(f"{mask} is no PNG, as masks must be")
        except DatasetError as error:
            problems.append(str(error))
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
    if not mask.any():
        raise DatasetError(f"{file} has an object without a pixel: delete it")
    return file.stem.rpartition("_")[0] or file.stem, describe_mask(mask)


def _decode_mask(source: Any, name: Path | str) -> NDArray[np.bool_]:
    """(H, W): pixels other than 0, or than transparent where only the alpha channel differs."""
    try:
        with Image.open(source) as image:
            pixels = np.asarray(image)
            has_alpha = image.mode in ("LA", "RGBA")
    except _DAMAGE as error:
        raise DatasetError(f"{name} cannot be read as a mask: {error}") from error
    if pixels.ndim == 2:
        return pixels != 0
    return np.asarray((pixels[..., :-1] if has_alpha else pixels).any(axis=2))


def _read_labelme(
    file: Path, size: tuple[int, int], problems: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Classes and fields of the objects in a json of labelme; a group_id joins parts of one.

    Shapes that cannot be used join the problems; DatasetError: the whole file cannot be used.
    """
    try:
        content = load_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is no json of labelme: {first_line(error)}") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise DatasetError(f"{file} is no json of labelme: it has no list 'shapes'")
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
            problems.append(f"{file}: shape {where}: {label!r} is without a pixel in the image")
    return objects


def _require_size(file: Path, content: dict[str, Any], size: tuple[int, int]) -> None:
    """Check that the json is of an image of this size, where it says so."""
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
            f"{file} is of an image of {_words(given)} pixels (height x width), its image has "
            f"{_words(size)}"
            + (", upright as its EXIF says: label the upright image" if turned else "")
        )


def _read_shape(shape: Any, size: tuple[int, int]) -> tuple[str, _Part]:
    """Class of a shape, and the polygon or mask that it covers.

    Raises:
        DatasetError, Refusal: it cannot be used; the message names neither file nor shape.
    """
    if not isinstance(shape, dict):
        raise DatasetError(f"it must be an object, it is {shown(shape)}")
    label = shape.get("label")
    if label is None or not str(label).strip():
        raise DatasetError("it has no 'label'")
    label = str(label).strip()
    points = _points(shape)
    if shape.get("shape_type") == "mask" or (shape.get("mask") and len(points) < 3):
        return label, _pasted_mask(shape, points, size)
    polygon = _polygon(str(shape.get("shape_type") or "polygon"), label, points)
    if not clean_segmentation([polygon], *size):
        raise DatasetError(f"labelled {label!r}, it has {polygon_defect(polygon)}")
    return label, polygon


def _polygon(kind: str, label: str, points: Sequence[tuple[float, float]]) -> list[float]:
    """The corners x, y, x, y, ... of a shape."""
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
            f"{kind!r} {what} cannot be read; {', '.join(POLYGON_KINDS)} of three points or more, "
            "rectangle and circle of two, and mask can"
        )
    return [round(value, 3) for corner in corners for value in corner]


def _pasted_mask(
    shape: dict[str, Any], points: Sequence[tuple[float, float]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """A mask that labelme keeps as a PNG of its box."""
    try:
        data = io.BytesIO(base64.b64decode(shape["mask"], validate=True))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"its mask cannot be decoded: {first_line(error)}") from error
    mask = _decode_mask(data, "its PNG")
    left, top = (round(value) for value in points[0])
    result = np.zeros(size, dtype=bool)
    part = result[max(0, top) : top + mask.shape[0], max(0, left) : left + mask.shape[1]]
    if part.shape != mask.shape:
        raise DatasetError("its mask reaches beyond the image")
    if not mask.any():
        raise DatasetError("its mask is without a pixel")
    part[:] = mask
    return result


def _points(shape: dict[str, Any]) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"its points cannot be read: {first_line(error)}") from error
    if not points or not all(math.isfinite(value) for point in points for value in point):
        raise DatasetError("it has no points, or infinite ones")
    return points


def _merge(parts: Sequence[_Part], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's fields of an object: polygons as they are, unless a part of it is a mask."""
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


def _words(size: Sequence[Any]) -> str:
    return " x ".join(map(str, size))
