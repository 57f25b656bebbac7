"""Data sets in COCO's and LVIS's format: registration, reading, and loading with clear errors.

The result is what `detectron2.data.datasets.coco.load_coco_json` returns (a test compares them);
the json is parsed once and checked while it is converted. What is wrong is reported, not raised:
loading turns the first error into an exception, the check of a data set lists all of them.
"""

import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from solo_d2.data.coco_json import (
    FIELDS,
    Field,
    in_order,
    is_whole,
    read_lists,
    require_possible_size,
    some,
    sorted_categories,
    usable_entries,
)
from solo_d2.data.image_folder import ImageFolder, require_inside
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.problems import (
    NOTICE,
    SKIPPED,
    Problem,
    Refusal,
    Report,
    count_reasons,
    refuse_errors,
    reporting,
)
from solo_d2.data.segmentations import (
    clean_segmentation,
    has_plain_numbers,
    is_box,
    is_number,
    lies_outside,
    polygon_defect,
    segmentation_box,
)
from solo_d2.utils.errors import ConfigError, DatasetError, shown

logger = logging.getLogger(__name__)

# Kinds of problems that do not stop training, with their log messages.
COVERS_NOTHING = "covers nothing"
PART_COVERS_NOTHING = "part that covers nothing"
UNKNOWN_IMAGE = "annotation of an unknown image"
OUTSIDE = "outside the image"
ANNOTATED_TWICE = "annotated more than once"
FILE_USED_TWICE = "image file used more than once"
_WARNINGS = {
    COVERS_NOTHING: "annotations cover nothing and are left out",
    PART_COVERS_NOTHING: "annotations have polygons that cover nothing and are left out",
    UNKNOWN_IMAGE: "annotations belong to images that the file does not list and are left out",
    OUTSIDE: "annotations lie outside their image and are left out in training",
    ANNOTATED_TWICE: "annotations have the class and box of another one in their image",
    FILE_USED_TWICE: "images have the file of another image",
}
# Why an annotation of a data set for object detection covers nothing.
BOX_ONLY = "there is a box but no mask"
# Maximum and minimum number of annotations for `_check_units`, and tolerance of boxes in pixels.
_MOST_CHECKED, _LEAST_CHECKED, _BOX_TOLERANCE = 1000, 3, 2.0
# LVIS: categories of an image in which not every object is annotated, and that are not in it.
LVIS_KEYS = ("not_exhaustive_category_ids", "neg_category_ids")
_LVIS_FIELDS = tuple(
    Field(
        key,
        "a list of whole numbers",
        lambda value: isinstance(value, list) and all(map(is_whole, value)),
        optional=True,
    )
    for key in LVIS_KEYS
)


def register_coco_format(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Register a data set in COCO format; no file is read until it is loaded.

    Registering the same files under the same name again does nothing.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        json_file: COCO's instances json; a relative path starts at the working folder.
        image_root: folder that the json's file names are relative to.

    Raises:
        ConfigError: the name already means other files.
    """
    paths = {"json_file": os.fspath(json_file), "image_root": os.fspath(image_root)}
    if is_registered(name, paths, "DATASETS.COCO_FORMAT"):
        return
    DatasetCatalog.register(name, functools.partial(load_coco_format, name, **paths))
    MetadataCatalog.get(name).set(evaluator_type="coco", registered_paths=paths, **paths)


def is_registered(name: str, paths: dict[str, str], key: str) -> bool:
    """Return whether a data set of these paths (by key of the metadata) is registered.

    Raises ConfigError, naming the key of the config, if the name means other files.
    """
    if name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(name)
    for part, path in paths.items():
        found = metadata.get("registered_paths", {}).get(part) or metadata.get(part)
        if found is None or os.path.abspath(found) != os.path.abspath(path):
            raise ConfigError(
                f"{key}: the data set name '{name}' is taken: its {part} is {found}, not {path}. "
                "Choose another name"
            )
    return True


def load_coco_format(
    name: str, json_file: str | Path, image_root: str | Path
) -> list[dict[str, Any]]:
    """Load a data set in COCO's or LVIS's format as dataset dicts, and fill in its metadata.

    Annotations whose segmentation covers nothing (no area, under three points, no pixel) are
    left out with one warning, and so are those of images that the json does not list. `json_file`
    is then removed from the metadata, as it is if a field that pycocotools needs is missing:
    Detectron2's COCOEvaluator would fail on the file, and without the entry it evaluates against
    the loaded annotations.

    Args:
        name: of the data set, in the catalogs; its `evaluator_type` "lvis" means LVIS's format.
        json_file: COCO's instances json.
        image_root: folder of the images.

    Returns:
        One dict per image, by image id. Annotations also have their `id`.

    Raises:
        DatasetError: anything else is wrong; the message names file and annotation.
    """
    problems: list[Problem] = []
    metadata = MetadataCatalog.get(name)
    report = refuse_errors(json_file, problems)
    records = read_records(json_file, image_root, report, metadata)
    _warn(json_file, problems, records)
    if metadata.get("evaluator_type") != "lvis":  # LVIS needs neither
        metadata.thing_classes = records.class_names
        metadata.thing_dataset_id_to_contiguous_id = records.contiguous
        if not records.fit_for_evaluator and metadata.get("json_file") == os.fspath(json_file):
            del metadata.json_file
    return records.in_order()


def _warn(json_file: str | Path, problems: list[Problem], records: "Records") -> None:
    """Log one line for each kind of problem, with its count, share, reasons and examples."""
    for kind, text in _WARNINGS.items():
        found = [problem for problem in problems if problem.kind == kind]
        if not found:
            continue
        total = len(records.by_id) if kind == FILE_USED_TWICE else records.num_annotations
        if kind in (COVERS_NOTHING, PART_COVERS_NOTHING):
            text += f" ({count_reasons(found)})"
        logger.warning(
            f"{json_file}: {len(found)} of {total} ({len(found) / total:.1%}) {text}: "
            + some([problem.where for problem in found])
        )


@dataclass
class Records:
    """The content of a json: dataset dicts by image id, classes and missing files."""

    class_names: list[str]
    contiguous: dict[Any, int]  # from category ids to classes
    num_annotations: int
    by_id: dict[Any, dict[str, Any]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)  # paths of image files
    fit_for_evaluator: bool = True  # whether pycocotools can evaluate against the file as it is

    def in_order(self) -> list[dict[str, Any]]:
        """Return dataset dicts by image id, numbers before texts."""
        return [self.by_id[key] for key in in_order(self.by_id)]


def read_records(
    json_file: str | Path, image_root: str | Path, report: Report, metadata: Any
) -> Records:
    """Read a json of COCO or LVIS; entries with errors are reported and left out.

    Classes that the metadata (of Detectron2's catalog) knows must be those of the file. Raises
    DatasetError if the file cannot be used at all, or the image folder is missing.
    """
    is_lvis = metadata.get("evaluator_type") == "lvis"
    content = read_lists(json_file, report, metadata.get("name", ""))
    if not os.path.isdir(image_root):
        what = "not a folder" if os.path.exists(image_root) else "missing"
        raise DatasetError(
            f"The image folder of {json_file} is {what}: looked for "
            f"{os.path.abspath(image_root)}. " + where_datasets_are("")
        )
    annotations = content.get("annotations", [])
    categories = sorted_categories(content["categories"], report)
    records = Records(
        class_names=[category["name"] for category in categories],
        contiguous={category["id"]: index for index, category in enumerate(categories)},
        num_annotations=len(annotations),
    )
    _compare_classes(records, metadata, report, by_name=not is_lvis)
    _add_images(records, content["images"], image_root, report, is_lvis)
    _add_annotations(records, annotations, report)
    _check_units(records, report)
    _notice_repetitions(records, report)
    return records


def _compare_classes(records: Records, metadata: Any, report: Report, *, by_name: bool) -> None:
    """Compare with the classes that a built-in data set has, and number them as it does."""
    known = metadata.get("thing_classes")
    if known is None:
        return
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = ids or {number + 1: number for number in range(len(known))}
    other = in_order(set(records.contiguous) ^ set(ids))
    if other:
        reason = (
            f"the file has {len(records.contiguous)}, the data set {len(known)}; ids in only one "
            f"of them: {some(other)}. Is it a file of another version?"
        )
        report(Problem("other categories than expected", "'categories'", reason))
    elif by_name and records.class_names != list(known):
        pairs = zip(records.class_names, known, strict=True)
        differing = [f"{shown(a)} instead of {shown(b)}" for a, b in pairs if a != b]
        report(Problem("other categories than expected", "'categories'", some(differing)))
    else:
        records.contiguous = {key: ids[key] for key in records.contiguous}


def _add_images(
    records: Records,
    images: Iterable[dict[str, Any]],
    image_root: str | Path,
    report: Report,
    is_lvis: bool,
) -> None:
    folder = ImageFolder(image_root)
    fields = FIELDS["images"] + _LVIS_FIELDS * is_lvis
    images = map(_with_file_name, images) if is_lvis else images
    missing: list[tuple[str, str]] = []
    for image in usable_entries(images, "images", report, fields=fields):
        where, name = f"image {shown(image['id'])}", image["file_name"]
        with reporting(report, where):
            require_possible_size(image)
            require_inside(name, image_root)
            path = folder.find(name)
            if path is None:
                path = os.path.join(image_root, name)
                missing.append((where, name))
                records.missing.add(path)
            records.by_id[image["id"]] = {
                "file_name": path,
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                **{key: image.get(key, []) for key in LVIS_KEYS if is_lvis},
                "annotations": [],
            }
    for where, name in missing:
        reason = (
            f"{some([name])} is missing in {os.path.abspath(image_root)} (missing: {len(missing)} "
            f"of {len(records.by_id)} image files){folder.hint(name)}"
        )
        report(Problem("image file missing", where, reason))
    folder.say_unusual()


def _with_file_name(image: dict[str, Any]) -> dict[str, Any]:
    """Name an image's file: LVIS has the folder, train2017 or val2017, in its URL alone."""
    address = image.get("coco_url")
    if not isinstance(address, str) or "/" not in address:
        return image
    return {**image, "file_name": "/".join(address.split("/")[-2:])}


def _add_annotations(
    records: Records, annotations: Iterable[dict[str, Any]], report: Report
) -> None:
    num_taken = 0
    for annotation in usable_entries(annotations, "annotations", report):
        where = f"annotation {shown(annotation['id'])}"
        with reporting(report, where):
            record = _image_of(annotation, records)
            record["annotations"].append(_convert(annotation, record, records, where, report))
            num_taken += 1
    if num_taken < records.num_annotations:
        records.fit_for_evaluator = False


def _image_of(annotation: dict[str, Any], records: Records) -> dict[str, Any]:
    """Return the dataset dict of an annotation's image."""
    category, image = annotation["category_id"], annotation["image_id"]
    if category not in records.contiguous:
        known = some(in_order(records.contiguous))
        reason = f"category_id {shown(category)} is not among the 'categories' ({known})"
        raise Refusal("unknown category", reason + _other_kind(category, records.contiguous))
    if image not in records.by_id:
        cause = _other_kind(image, records.by_id)
        reason = f"image_id {shown(image)} is not among the 'images'{cause}"
        if cause:
            raise Refusal("'image_id' of another kind", reason)
        raise Refusal(UNKNOWN_IMAGE, reason, SKIPPED)
    return records.by_id[image]


def _other_kind(key: int | str, known: Container[Any]) -> str:
    """Return a hint if the key is known as a number instead of a text, or vice versa."""
    other: int | str | None = None
    with contextlib.suppress(ValueError):  # no number, or one of thousands of digits
        other = int(key) if isinstance(key, str) else str(key)
    if other is None or other not in known:
        return ""
    return f", but {shown(other)} is: write texts or numbers in both places"


def _convert(
    annotation: dict[str, Any], record: dict[str, Any], records: Records, where: str, report: Report
) -> dict[str, Any]:
    """Convert an annotation to Detectron2's format."""
    given, box = annotation.get("segmentation"), annotation.get("bbox")
    size = record["height"], record["width"]
    try:
        segmentation = clean_segmentation(given, *size)
    except Refusal as error:
        raise Refusal(error.kind, f"{error} (image {record['file_name']})") from None
    if segmentation is None:
        raise Refusal(COVERS_NOTHING, _why_nothing(annotation), SKIPPED)
    if isinstance(segmentation, list) and lies_outside(segmentation, *size):
        report(Problem(OUTSIDE, where, f"lies outside {record['file_name']}", SKIPPED))
    is_partial = isinstance(given, list) and len(segmentation) < len(given)
    if is_partial:
        report(Problem(PART_COVERS_NOTHING, where, _why_nothing(annotation), SKIPPED))
    complete = is_box(box) and is_number(annotation.get("area")) and "iscrowd" in annotation
    if is_partial or not complete or not has_plain_numbers(given):
        records.fit_for_evaluator = False
    item = {
        "id": annotation["id"],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "bbox": box if is_box(box) else segmentation_box(segmentation),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": records.contiguous[annotation["category_id"]],
        "segmentation": segmentation,
    }
    if annotation.get("keypoints"):
        item["keypoints"] = _keypoints(annotation["keypoints"])
    return item


def _why_nothing(annotation: dict[str, Any]) -> str:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return "the RLE has no pixel"
    if not any(segmentation):
        return BOX_ONLY if is_box(annotation.get("bbox")) else "there is no polygon"
    defects = filter(None, map(polygon_defect, segmentation))
    return "polygon with " + ", ".join(dict.fromkeys(defects))


def _keypoints(keypoints: Any) -> list[float]:
    """Convert pixel indices to coordinates, as Detectron2 does."""
    if not isinstance(keypoints, list) or not all(
        isinstance(value, float) or is_number(value) for value in keypoints
    ):
        reason = "'keypoints' must be numbers x, y, v, x, y, v, ..."
        raise Refusal("annotation with invalid 'keypoints'", reason)
    return [value if index % 3 == 2 else value + 0.5 for index, value in enumerate(keypoints)]


def _check_units(records: Records, report: Report) -> None:
    """Report boxes of corners instead of sizes, and polygons relative to the image.

    A file is written by one program, so the first annotations decide.
    """
    annotations = (a for record in records.by_id.values() for a in record["annotations"])
    corners, relative = [], []
    for annotation in itertools.islice(annotations, _MOST_CHECKED):
        segmentation = annotation["segmentation"]
        x, y, width, height = segmentation_box(segmentation)
        if max(x, y) > 2 * _BOX_TOLERANCE:  # otherwise both forms are about the same
            expected = (x, y, x + width, y + height)
            pairs = zip(annotation["bbox"], expected, strict=True)
            corners.append(all(abs(a - b) <= _BOX_TOLERANCE for a, b in pairs))
        if isinstance(segmentation, list):
            relative.append(min(x, y) >= 0 and max(x + width, y + height) <= 1)
    if len(corners) >= _LEAST_CHECKED and all(corners):
        reason = "every 'bbox' is [x0, y0, x1, y1], but must be [x, y, width, height]"
        report(Problem("boxes of another form", "'annotations'", reason))
    if len(relative) >= _LEAST_CHECKED and all(relative):
        reason = "all polygons are between 0 and 1, but their coordinates must be pixels"
        report(Problem("polygons in another unit", "'annotations'", reason))


def _notice_repetitions(records: Records, report: Report) -> None:
    """Report image files that several images name, and objects annotated more than once."""
    files: set[str] = set()
    for record in records.by_id.values():
        if record["file_name"] in files:
            where = f"image {shown(record['image_id'])}"
            reason = f"{record['file_name']} also is another image's file"
            report(Problem(FILE_USED_TWICE, where, reason, NOTICE))
        files.add(record["file_name"])
        seen: dict[tuple[Any, ...], int] = {}
        for annotation in record["annotations"]:
            key = annotation["category_id"], *annotation["bbox"]
            if key in seen:
                where = f"annotation {annotation['id']}"
                reason = f"has the class and box of annotation {seen[key]}"
                report(Problem(ANNOTATED_TWICE, where, reason, NOTICE))
            seen[key] = annotation["id"]
