"""From the entries of COCO's and LVIS's json files to Detectron2's dataset dicts.

What is wrong is reported, not raised: loading turns the first error into an exception, the check of
a data set lists all of them. So both follow the same rules.
"""

import contextlib
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from solo_d2.data.problems import ERROR, NOTICE, SKIPPED, Problem, Refusal, Report
from solo_d2.data.segmentations import (
    clean_segmentation,
    is_box,
    is_number,
    polygon_defect,
    segmentation_box,
)
from solo_d2.utils.errors import DatasetError, shown

# Kinds of problems: of annotations that are left out as a whole or in part, and of repetitions.
COVERS_NOTHING = "covers nothing"
PART_COVERS_NOTHING = "part that covers nothing"
UNKNOWN_IMAGE = "annotation of an unknown image"
OUTSIDE = "outside the image"
ANNOTATED_TWICE = "annotated more than once"
FILE_USED_TWICE = "image file used more than once"
# Why an annotation of a data set for object detection covers nothing.
BOX_ONLY = "there is a box but no mask"
# LVIS: categories of an image in which not every object is annotated, and that are not in it.
LVIS_KEYS = ("not_exhaustive_category_ids", "neg_category_ids")


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_whole, value))


_LVIS_FIELDS = tuple(
    Field(key, "a list of whole numbers", _is_id_list, optional=True) for key in LVIS_KEYS
)


@dataclass
class Records:
    """What a json holds.

    Attributes:
        by_id: dataset dicts by image id.
        class_names: of the K classes.
        contiguous: from category ids to classes.
        missing: paths of the image files that are not there.
        num_annotations: entries of 'annotations'.
        fit_for_evaluator: whether pycocotools can evaluate against the file as it is.
    """

    by_id: dict[Any, dict[str, Any]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    contiguous: dict[Any, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    num_annotations: int = 0
    fit_for_evaluator: bool = True

    def in_order(self) -> list[dict[str, Any]]:
        """Dataset dicts by image id, numbers before texts."""
        return [self.by_id[key] for key in in_order(self.by_id)]


def read_records(
    json_file: str | Path,
    image_root: str | Path,
    report: Report,
    metadata: Any = None,
    *,
    files_are_there: bool = True,
) -> Records:
    """Read a json of COCO or LVIS.

    Args:
        json_file: the file.
        image_root: folder that its file names are relative to.
        report: receives what is wrong; the entry is then left out.
        metadata: of the data set in Detectron2's catalog. Classes that are known there must be
            those of the file. The `evaluator_type` "lvis" means LVIS's format.
        files_are_there: False to look for no image files.

    Raises:
        DatasetError: the file cannot be used at all, or the image folder is missing.
    """
    metadata = {} if metadata is None else metadata
    is_lvis = metadata.get("evaluator_type") == "lvis"
    content = read_lists(json_file, report, metadata.get("name", ""))
    if files_are_there and not os.path.isdir(image_root):
        raise DatasetError(
            f"The image folder of {json_file} is missing: looked for "
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
    _add_images(records, content["images"], image_root, report, is_lvis, files_are_there)
    _add_annotations(records, annotations, report)
    _notice_repetitions(records, report)
    return records


def _compare_classes(records: Records, metadata: Any, report: Report, *, by_name: bool) -> None:
    """Compare with the classes that a built-in data set has, and number them alike."""
    known = metadata.get("thing_classes")
    if known is None:
        return
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = ids or {number + 1: number for number in range(len(known))}
    other = in_order(set(records.contiguous) ^ set(ids))
    pairs = zip(records.class_names, known, strict=False)
    if other:
        reason = (
            f"the file has {len(records.contiguous)}, the data set {len(known)}; ids in only one "
            f"of them: {some(other)}. Is it a file of another version?"
        )
        report(Problem("other categories than expected", "'categories'", reason))
    elif by_name and records.class_names != list(known):
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
    files_are_there: bool,
) -> None:
    """Make the dataset dicts of images, without annotations."""
    folder = ImageFolder(image_root)
    fields = FIELDS["images"] + _LVIS_FIELDS * is_lvis
    images = map(_with_file_name, images) if is_lvis else images
    missing: list[tuple[str, str]] = []
    for image in usable_entries(images, "images", report, fields=fields):
        where, name = f"image {shown(image['id'])}", image["file_name"]
        try:
            require_possible_size(image)
            require_inside(name, image_root)
        except Refusal as error:
            report(Problem(error.kind, where, str(error)))
            continue
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
    for where, name in missing if files_are_there else ():
        count = f"{len(missing)} of {len(records.by_id)} image files"
        reason = f"{some([name])} is missing in {os.path.abspath(image_root)} (missing: {count})"
        reason += folder.hint(name)
        report(Problem("image file missing", where, reason))
    folder.say_unusual()


def _with_file_name(image: dict[str, Any]) -> dict[str, Any]:
    """Name an image's file: LVIS has the folder, train2017 or val2017, in its address alone."""
    address = image.get("coco_url")
    if not isinstance(address, str) or "/" not in address:
        return image
    return {**image, "file_name": "/".join(address.split("/")[-2:])}


def _add_annotations(
    records: Records, annotations: Iterable[dict[str, Any]], report: Report
) -> None:
    """Add annotations to the dataset dicts of their images."""
    for annotation in usable_entries(annotations, "annotations", report):
        where = f"annotation {shown(annotation['id'])}"
        try:
            record = _image_of(annotation, records)
            item = _convert(annotation, record, records, where, report)
        except Refusal as error:
            severity = SKIPPED if error.kind in (COVERS_NOTHING, UNKNOWN_IMAGE) else ERROR
            report(Problem(error.kind, where, str(error), severity))
            records.fit_for_evaluator = False
        else:
            record["annotations"].append(item)


def _image_of(annotation: dict[str, Any], records: Records) -> dict[str, Any]:
    """The dataset dict of an annotation's image."""
    category, image = annotation["category_id"], annotation["image_id"]
    if category not in records.contiguous:
        known = some(in_order(records.contiguous))
        reason = f"category_id {shown(category)} is not among the 'categories' ({known})"
        raise Refusal("unknown category", reason + _other_kind(category, records.contiguous))
    if image not in records.by_id:
        cause = _other_kind(image, records.by_id)
        kind = "'image_id' of another kind" if cause else UNKNOWN_IMAGE
        raise Refusal(kind, f"image_id {shown(image)} is not among the 'images'{cause}")
    return records.by_id[image]


def _other_kind(key: int | str, known: Container[Any]) -> str:
    """The cause, for a message, where a text stands for a number or a number for a text."""
    other: int | str | None = None
    with contextlib.suppress(ValueError):  # no number, or one of thousands of digits
        other = int(key) if isinstance(key, str) else str(key)
    if other is None or other not in known:
        return ""
    return f", but {shown(other)} is: write texts or numbers in both places"


def _convert(
    annotation: dict[str, Any],
    record: dict[str, Any],
    records: Records,
    where: str,
    report: Report,
) -> dict[str, Any]:
    """Detectron2's form of an annotation."""
    given, box = annotation.get("segmentation"), annotation.get("bbox")
    try:
        segmentation = clean_segmentation(given, record["height"], record["width"])
    except Refusal as error:
        raise Refusal(error.kind, f"{error} (image {record['file_name']})") from None
    if segmentation is None:
        raise Refusal(COVERS_NOTHING, _why_nothing(annotation))
    if isinstance(segmentation, list) and _lies_outside(segmentation, record):
        report(Problem(OUTSIDE, where, f"lies outside {record['file_name']}", SKIPPED))
    is_partial = isinstance(given, list) and len(segmentation) < len(given)
    if is_partial:
        report(Problem(PART_COVERS_NOTHING, where, _why_nothing(annotation), SKIPPED))
    complete = is_box(box) and is_number(annotation.get("area")) and "iscrowd" in annotation
    if is_partial or not complete or not _has_plain_numbers(given):
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


def _has_plain_numbers(segmentation: Any) -> bool:
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
    if 0 < x < width and 0 < y < height:  # nearly always, so no box is computed
        return False
    x, y, across, down = segmentation_box(polygons)
    return x >= width or y >= height or x + across <= 0 or y + down <= 0


def _keypoints(keypoints: Any) -> list[float]:
    """As Detectron2: from pixel indices to coordinates."""
    if not isinstance(keypoints, list) or not all(
        isinstance(value, float) or is_number(value) for value in keypoints
    ):
        reason = "'keypoints' must be numbers x, y, v, x, y, v, ..."
        raise Refusal("annotation with invalid 'keypoints'", reason)
    return [value if index % 3 == 2 else value + 0.5 for index, value in enumerate(keypoints)]


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
