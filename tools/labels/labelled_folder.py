"""Read a folder of images and their labels, and write COCO files.

Two kinds of labels are detected per image:

    labels/street.json                         labelme, for the image street.jpg
    labels/street/car_1.png, red_car_2.png     a mask per object, non-zero inside; the part before
                                               the last _ is the class

An image without labels has no objects. A folder per image, as in the 2018 Data Science Bowl
(BBBC038), has objects of one class:

    stage1_train/0a7d30b2/images/0a7d30b2.png
    stage1_train/0a7d30b2/masks/07a9bf1d.png, 0e548d0a.png
"""

import contextlib
import filecmp
import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo_d2.data.coco_json import load_json, some
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.files import save_text
from solo_d2.utils.images import EXTENSIONS, ImageError, read_size
from tools.labels.labelme import decode_mask, read_labelme, words

LABEL_FORMATS = "labels of NAME.jpg are NAME.json of labelme, or PNGs of masks in a folder NAME"
# Maximum number of problems in a message.
_LISTED = 50
# Twice Pillow's MAX_IMAGE_PIXELS, from which on it raises an error by default. INPUT.MAX_PIXELS
# limits the images of a training.
_MOST_PIXELS = 178_956_970


@dataclass(frozen=True)
class LabelledImage:
    """An image and its objects."""

    file_name: str  # relative to the folder of the images
    size: tuple[int, int]  # height and width, upright
    objects: list[tuple[str, dict[str, Any]]]  # class name and COCO fields


def read_labelled_folder(images: Path, labels: Path) -> list[LabelledImage]:
    """Read all images of a folder (not its subfolders) and their labels, by file name.

    Raises DatasetError, which lists up to `_LISTED` unusable labels and images.
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
            f"{images}: several images are called {some(twice)}, so their labels are ambiguous: "
            "rename the images and labels"
        )
    strays = (p for p in _strays(labels, counts) if labels != images or not p.is_dir())
    problems = [f"{stray}: no image has this name" for stray in strays]
    problems += _unread(files, labels)
    found = [_read_image(file, labels, problems) for file in files]
    _refuse(problems)
    return found


def has_folder_for_each_image(root: Path) -> bool:
    """Return whether a folder has subfolders with `images`, and no images."""
    if not root.is_dir() or any(path.suffix.lower() in EXTENSIONS for path in _visible(root)):
        return False
    return any((path / "images").is_dir() for path in _visible(root))


def read_image_folders(root: Path, class_name: str) -> list[LabelledImage]:
    """Read a folder of folders, each with an image in `images` and its objects in `masks`.

    All objects are of class `class_name`; file names are relative to the root. Raises DatasetError,
    which lists up to `_LISTED` missing or unusable files.
    """
    problems: list[str] = []
    found = []
    for folder in (path for path in _visible(root) if path.is_dir()):
        files = [f for f in folder.glob("images/[!.]*") if f.suffix.lower() in EXTENSIONS]
        if len(files) != 1:
            problems.append(f"{folder / 'images'} must have one image, but has {len(files)}")
        elif not (folder / "masks").is_dir():
            problems.append(f"{folder} has no folder masks")
        else:
            image = _read_image(files[0], folder, problems, masks=folder / "masks")
            objects = [(class_name, fields) for _, fields in image.objects]
            name = files[0].relative_to(root).as_posix()
            found.append(LabelledImage(name, image.size, objects))
    _refuse(problems)
    return found


def _refuse(problems: Sequence[str]) -> None:
    """Raise a DatasetError if there are problems, with up to `_LISTED` lines."""
    if problems:
        more = len(problems) - _LISTED
        lines = [*problems[:_LISTED], *([f"... and {more} more"] if more > 0 else [])]
        raise DatasetError(
            f"{len(problems)} labels or images cannot be used, so nothing is written. Correct or "
            "delete them (shape indices start at 0):" + "".join(f"\n  {line}" for line in lines)
        )


def _visible(folder: Path) -> list[Path]:
    """Return the sorted content of a folder without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _strays(labels: Path, stems: Container[str]) -> Iterator[Path]:
    """Yield labels without an image; ignore other JSON files."""
    for path in _visible(labels):
        if path.is_dir():
            if path.name not in stems and any(file.suffix in EXTENSIONS for file in _visible(path)):
                yield path
        elif path.suffix == ".json" and path.stem not in stems:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                content = load_json(path)
                if isinstance(content, dict) and "shapes" in content:
                    yield path


def _unread(images: Iterable[Path], labels: Path) -> Iterator[str]:
    """Yield a line for each label of another format than those that are read."""
    content = {path.name: path for path in _visible(labels)}
    by_stem = {path.stem: path for path in content.values() if path.is_file()}
    for image in images:
        other = by_stem.get(image.stem)
        if other is None or image.stem in content or f"{image.stem}.json" in content:
            continue
        if not filecmp.cmp(image, other, shallow=False):  # no copy of the image
            yield f"{other} is not read: {LABEL_FORMATS}"


def split_images(
    images: Sequence[LabelledImage], val_fraction: float
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split images into a training and a validation part of at least one image each.

    The split depends on the file names only, so that an image keeps its part when others are added.
    """
    if len(images) < 2:
        raise DatasetError("At least two images are required, one of them for evaluation")
    order = sorted(images, key=lambda i: hashlib.sha256(i.file_name.encode()).digest())
    count = min(max(1, round(val_fraction * len(order))), len(order) - 1)
    parts = order[count:], order[:count]
    train, val = (sorted(part, key=lambda image: image.file_name) for part in parts)
    return train, val


def write_coco(file: Path, images: Sequence[LabelledImage], class_names: Sequence[str]) -> None:
    """Write images and objects in COCO format atomically; class ids start at 1, by name."""
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
    """Return all class names, sorted."""
    names = sorted({name for image in images for name, _ in image.objects})
    if not names:
        raise DatasetError(
            f"No image has a labelled object: {LABEL_FORMATS}, directly in the folder of the labels"
        )
    return names


def _read_image(
    file: Path, labels: Path, problems: list[str], masks: Path | None = None
) -> LabelledImage:
    """Read an image with its objects; append unusable files to the problems."""
    json_file, folder = labels / f"{file.stem}.json", masks or labels / file.stem
    objects: list[tuple[str, dict[str, Any]]] = []
    size = 0, 0
    try:
        size = read_size(file, max_pixels=_MOST_PIXELS)
        if json_file.is_file():
            objects += read_labelme(json_file, size, problems)
    except (DatasetError, ImageError) as error:
        problems.append(str(error))
    for mask in _visible(folder) if size[0] and folder.is_dir() else ():
        try:
            if masks is None and mask.stem.isdecimal():
                raise DatasetError(f"{mask} has no class in its name: call it CLASS_{mask.name}")
            if mask.suffix.lower() == ".png":
                objects.append(_read_mask(mask, size))
            elif mask.suffix.lower() in EXTENSIONS:
                raise DatasetError(f"{mask} must be a PNG")
        except DatasetError as error:
            problems.append(str(error))
    return LabelledImage(file.name, size, objects)


def _read_mask(file: Path, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    mask = decode_mask(file, file)
    if mask.shape != size:
        raise DatasetError(
            f"{file} has {words(mask.shape)} pixels (height x width), its image {words(size)}"
        )
    if not mask.any():
        raise DatasetError(f"{file} is an empty mask: delete it")
    return file.stem.rpartition("_")[0] or file.stem, describe_mask(mask)
