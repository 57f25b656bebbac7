"""From the entries of a COCO json to Detectron2's dataset dicts, each of them checked.

What is wrong is reported, not raised: loading turns the first error into an exception, a check of
the data set (`solo_d2.dataset_check`) lists all of them. So both know the same rules.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from solo_d2.data.coco_json import is_whole, leaves_folder, require_image, some
from solo_d2.data.problems import NOTICE, SKIPPED, Problem, Refusal, Report
from solo_d2.data.segmentations import (
    clean_segmentation,
    is_box,
    is_number,
    polygon_defect,
    segmentation_box,
)
from solo_d2.errors import shown

# Kinds of problems: of annotations that are left out as a whole or in part, and of repetitions.
COVERS_NOTHING = "covers nothing"
PART_COVERS_NOTHING = "part that covers nothing"
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
        fit_for_evaluator: whether pycocotools can evaluate against the file as it is.
    """

    by_id: dict[Any, dict[str, Any]] = field(default_factory=dict)
    contiguous: dict[int, int] = field(default_factory=dict)
    fit_for_evaluator: bool = True

    def in_order(self) -> list[dict[str, Any]]:
        """Dataset dicts by image id, numbers before texts."""
        keys = sorted(self.by_id, key=lambda key: (isinstance(key, str), key))
        return [self.by_id[key] for key in keys]


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
    for image in images:
        try:
            require_image(image)
            if leaves_folder(image["file_name"]):
                reason = (
                    f"has the file name {shown(image['file_name'])}, which is not inside the image "
                    f"folder {image_root}"
                )
                raise Refusal("image outside the folder", reason)
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
        records.by_id[image["id"]] = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            **{key: image.get(key, []) for key in extra_keys},
            "annotations": [],
        }


def _require_ids(key: str, ids: Any) -> None:
    if not isinstance(ids, list) or not all(map(is_whole, ids)):
        reason = f"needs a list of category ids '{key}', it is {shown(ids)}"
        raise Refusal("image incomplete", reason)


def missing_files(records: Records) -> list[str]:
    """Names of the image files that are not there, by one listing of each folder."""
    listings: dict[str, set[str]] = {}
    missing = []
    for record in records.by_id.values():
        folder, base = os.path.split(record["file_name"])
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            missing.append(record["file_name"])
    return missing


def add_annotations(
    records: Records, annotations: Iterable[dict[str, Any]], report: Report
) -> None:
    """Add annotations to the dataset dicts of their images.

    Args:
        records: with the images and categories.
        annotations: entries of the json.
        report: told what is wrong, and what is left out; the entry is then not added.
    """
    seen: set[int] = set()
    for annotation in annotations:
        where = f"annotation {shown(annotation.get('id'))}"
        try:
            record = _check_ids(annotation, records, seen)
            item = _convert(annotation, record, records, where, report)
        except Refusal as error:
            report(Problem(error.kind, where, str(error)))
            continue
        if item is None:
            records.fit_for_evaluator = False
        else:
            record["annotations"].append(item)


def _check_ids(annotation: dict[str, Any], records: Records, seen: set[int]) -> dict[str, Any]:
    """Check ids and flags of an annotation; the dataset dict of its image."""
    key = annotation.get("id")
    if not is_whole(key):
        raise Refusal("annotation without id", "every annotation needs a whole number 'id'")
    if key in seen:
        reason = "the id is used more than once: give every annotation its own"
        raise Refusal("annotation id used more than once", reason)
    seen.add(key)
    category, image = annotation.get("category_id"), annotation.get("image_id")
    if not is_whole(category) or category not in records.contiguous:
        known = some(sorted(records.contiguous))
        reason = f"category_id {shown(category)} is not among the 'categories' ({known})"
        raise Refusal("unknown category", reason)
    if not (is_whole(image) or isinstance(image, str)) or image not in records.by_id:
        reason = f"image_id {shown(image)} is not among the 'images'"
        raise Refusal("annotation of an unknown image", reason)
    if annotation.get("ignore"):
        reason = "'ignore' is not supported: remove it, or use 'iscrowd'"
        raise Refusal("'ignore' is set", reason)
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        reason = f"'iscrowd' must be 0 or 1, it is {shown(crowd)}"
        raise Refusal("'iscrowd' is neither 0 nor 1", reason)
    return records.by_id[image]


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
    if isinstance(given, list) and len(segmentation) < len(given):
        records.fit_for_evaluator = False
        report(Problem(PART_COVERS_NOTHING, where, _why_nothing(annotation), SKIPPED))
    item = {
        "id": annotation["id"],
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": records.contiguous[annotation["category_id"]],
        "segmentation": segmentation,
    }
    keypoints = annotation.get("keypoints")
    if keypoints:
        item["keypoints"] = _keypoints(keypoints)
    return item


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
    numbers = isinstance(keypoints, list) and all(map(is_number, keypoints))
    if not numbers or len(keypoints) % 3:
        raise Refusal(
            "keypoints of another form", "'keypoints' must be numbers x, y, v, x, y, v, ..."
        )
    return [value if index % 3 == 2 else value + 0.5 for index, value in enumerate(keypoints)]
