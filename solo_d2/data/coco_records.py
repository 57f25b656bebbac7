"""From the entries of a COCO json to Detectron2's dataset dicts, each of them checked.

What is wrong is reported, not raised: loading turns the first error into an exception, a check of
the data set (`solo_d2.dataset_check`) lists all of them. So both know the same rules.
"""

import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from solo_d2.data.coco_json import in_order, is_id, is_whole, require_image, some
from solo_d2.data.image_folder import ImageFolder, require_inside
from solo_d2.data.problems import NOTICE, SKIPPED, Problem, Refusal, Report
from solo_d2.data.segmentations import (
    clean_segmentation,
    is_box,
    is_number,
    polygon_defect,
    segmentation_box,
)
from solo_d2.utils.errors import shown

# Kinds of problems: of annotations that are left out as a whole or in part, and of repetitions.
COVERS_NOTHING = "covers nothing"
PART_COVERS_NOTHING = "part that covers nothing"
UNKNOWN_IMAGE = "annotation of an unknown image"
OUTSIDE = "outside the image"
ANNOTATED_TWICE = "annotated more than once"
FILE_USED_TWICE = "image file used more than once"
# Why an annotation of a data set for object detection covers nothing.
BOX_ONLY = "there is a box but no mask"


@dataclass
class Records:
    """What a COCO json holds.

    Attributes:
        by_id: dataset dicts by image id.
        contiguous: from category ids to classes.
        missing: paths of the image files that are not there, with hints what to do about it.
        fit_for_evaluator: whether pycocotools can evaluate against the file as it is.
    """

    by_id: dict[Any, dict[str, Any]] = field(default_factory=dict)
    contiguous: dict[Any, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    fit_for_evaluator: bool = True

    def in_order(self) -> list[dict[str, Any]]:
        """Dataset dicts by image id, numbers before texts."""
        return [self.by_id[key] for key in in_order(self.by_id)]


def add_images(
    records: Records,
    images: Iterable[dict[str, Any]],
    image_root: str | Path,
    report: Report,
    extra_keys: Sequence[str] = (),
) -> None:
    """Make the dataset dicts of images, without annotations.

    Args:
        records: where they go.
        images: entries of the json.
        image_root: folder that their file names are relative to.
        report: told what is wrong; the entry is then left out.
        extra_keys: keys of lists that the dataset dicts have too.
    """
    folder = ImageFolder(image_root)
    for image in images:
        try:
            require_image(image)
            require_inside(image["file_name"], image_root)
            if image["id"] in records.by_id:
                reason = (
                    f"has the id {shown(image['id'])}, which is used more than once: give every "
                )
                raise Refusal("image id used more than once", reason + "image an id of its own")
            for key in extra_keys:
                _require_ids(key, image.get(key, []))
        except Refusal as error:
            name = image.get("file_name", image.get("id"))
            report(Problem(error.kind, f"image {shown(name)}", str(error)))
            continue
        path = folder.find(image["file_name"])
        if path is None:
            path = os.path.join(image_root, image["file_name"])
            records.missing[path] = folder.hint(image["file_name"]) if not records.missing else ""
        records.by_id[image["id"]] = {
            "file_name": path,
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            **{key: image.get(key, []) for key in extra_keys},
            "annotations": [],
        }
    folder.say_unusual()


def _require_ids(key: str, ids: Any) -> None:
    if not isinstance(ids, list) or not all(map(is_whole, ids)):
        reason = f"needs a list of category ids '{key}', it is {shown(ids)}"
        raise Refusal("image incomplete", reason)


def add_annotations(
    records: Records, annotations: Iterable[dict[str, Any]], report: Report
) -> None:
    """Add annotations to the dataset dicts of their images.

    Args:
        records: with the images and categories.
        annotations: entries of the json.
        report: told what is wrong, and what is left out; the entry is then not added.
    """
    seen: set[int | str] = set()
    for annotation in annotations:
        where = f"annotation {shown(annotation.get('id'))}"
        try:
            record = _check_ids(annotation, records, seen)
            if record is None:
                records.fit_for_evaluator = False
                reason = f"image {shown(annotation['image_id'])} is not among the 'images'"
                report(Problem(UNKNOWN_IMAGE, where, reason, SKIPPED))
                continue
            item = _convert(annotation, record, records, where, report)
        except Refusal as error:
            report(Problem(error.kind, where, str(error)))
            continue
        if item is None:
            records.fit_for_evaluator = False
        else:
            record["annotations"].append(item)


def _check_ids(
    annotation: dict[str, Any], records: Records, seen: set[int | str]
) -> dict[str, Any] | None:
    """Check ids and flags of an annotation; the dataset dict of its image, None for no image."""
    key = annotation.get("id")
    if not is_id(key):
        reason = f"every annotation needs an 'id', a whole number or a text, it is {shown(key)}"
        raise Refusal("annotation without id", reason)
    if key in seen:
        reason = "the id is used more than once: give every annotation its own"
        raise Refusal("annotation id used more than once", reason)
    seen.add(key)
    category, image = annotation.get("category_id"), annotation.get("image_id")
    if not is_id(category) or category not in records.contiguous:
        known = some(in_order(records.contiguous))
        reason = f"category_id {shown(category)} is not among the 'categories' ({known})"
        raise Refusal("unknown category", reason + _other_kind(category, records.contiguous))
    if not is_id(image) or (image not in records.by_id and _other_kind(image, records.by_id)):
        reason = f"image_id {shown(image)} is not among the 'images'"
        raise Refusal(UNKNOWN_IMAGE, reason + _other_kind(image, records.by_id))
    if annotation.get("ignore"):
        reason = "'ignore' is not supported: remove it, or use 'iscrowd'"
        raise Refusal("'ignore' is set", reason)
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        reason = f"'iscrowd' must be 0 or 1, it is {shown(crowd)}: correct it, or leave it out"
        raise Refusal("'iscrowd' is neither 0 nor 1", reason)
    return records.by_id.get(image)


def _other_kind(key: Any, known: Container[Any]) -> str:
    """The cause, for a message, where a text stands for a number or a number for a text."""
    if isinstance(key, str):
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 20 else None
        if number in known:
            return f": it is a text, the id there is the number {number}. Write both alike"
    elif is_whole(key) and abs(key) < 2**63 and str(key) in known:
        return f": it is a number, the id there is the text '{key}'. Write both alike"
    return ""


def _convert(
    annotation: dict[str, Any],
    record: dict[str, Any],
    records: Records,
    where: str,
    report: Report,
) -> dict[str, Any] | None:
    """Detectron2's form of an annotation; None if it covers nothing."""
    given = annotation.get("segmentation")
    try:
        segmentation = clean_segmentation(given, record["height"], record["width"])
    except Refusal as error:
        raise Refusal(error.kind, f"{error} (image {record['file_name']})") from None
    if segmentation is None:
        report(Problem(COVERS_NOTHING, where, _why_nothing(annotation), SKIPPED))
        return None
    if isinstance(segmentation, list) and _lies_outside(segmentation, record):
        reason = f"lies outside {record['file_name']}"
        report(Problem(OUTSIDE, where, reason, SKIPPED))
    box = annotation.get("bbox")
    if not is_box(box):
        records.fit_for_evaluator = False
        box = segmentation_box(segmentation)
    if "iscrowd" not in annotation or not is_number(annotation.get("area")):
        records.fit_for_evaluator = False
    if not _is_plain(given):
        records.fit_for_evaluator = False
    if isinstance(given, list) and len(segmentation) < len(given):
        records.fit_for_evaluator = False
        report(Problem(PART_COVERS_NOTHING, where, _why_nothing(annotation), SKIPPED))
    item = {
        "id": annotation["id"],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": records.contiguous[annotation["category_id"]],
        "segmentation": segmentation,
    }
    keypoints = annotation.get("keypoints")
    if keypoints:
        item["keypoints"] = _keypoints(keypoints)
    return item


def _is_plain(segmentation: Any) -> bool:
    """Whether its numbers are written as evaluators take them."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return not isinstance(counts, list) or set(map(type, counts)) == {int}
    return not any(str in set(map(type, polygon)) for polygon in segmentation)


def _why_nothing(annotation: dict[str, Any]) -> str:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return "the RLE has no pixel"
    if not any(segmentation):
        return BOX_ONLY if is_box(annotation.get("bbox")) else "there is no polygon"
    defects = filter(None, map(polygon_defect, segmentation))
    return "polygon with " + ", ".join(dict.fromkeys(defects))


def _lies_outside(polygons: list[Any], record: dict[str, Any]) -> bool:
    """Whether polygons have no part in their image."""
    width, height = record["width"], record["height"]
    x, y = polygons[0][:2]
    if 0 < x < width and 0 < y < height:  # nearly always: spares the box
        return False
    x, y, across, down = segmentation_box(polygons)
    return x >= width or y >= height or x + across <= 0 or y + down <= 0


def notice_repetitions(records: Records, report: Report) -> None:
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


def _keypoints(keypoints: Any) -> list[float]:
    """As Detectron2: from pixel indices to coordinates."""
    if not isinstance(keypoints, list) or not all(
        isinstance(value, float) or is_number(value) for value in keypoints
    ):
        raise Refusal(
            "keypoints of another form", "'keypoints' must be numbers x, y, v, x, y, v, ..."
        )
    return [value if index % 3 == 2 else value + 0.5 for index, value in enumerate(keypoints)]
