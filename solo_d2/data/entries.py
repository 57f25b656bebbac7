"""Everything that is wrong in the entries of a data set's json."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.catalog import class_names
from solo_d2.data.coco_json import (
    MIXED_IDS,
    in_order,
    is_category,
    mixes_kinds,
    not_objects,
    parse_lists,
    read_text,
    some,
)
from solo_d2.data.coco_records import Records, add_annotations, add_images, notice_repetitions
from solo_d2.data.lvis_format import IMAGE_KEYS, with_file_name
from solo_d2.data.panoptic_entries import list_panoptic_problems
from solo_d2.data.panoptic_json import collect_panoptic_json
from solo_d2.data.problems import NOTICE, Problem, Report
from solo_d2.data.segmentations import segmentation_box
from solo_d2.utils.errors import DatasetError, shown

# Annotations may reach this many pixels beyond the image: tools round differently.
_TOLERANCE = 2.0


@dataclass(frozen=True)
class Entries:
    """What can be used of a data set.

    Attributes:
        records: Detectron2's dataset dicts of the images that are there, with the annotations that
            training would take.
        class_names: of its K classes.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    class_names: Sequence[str] = ()


def read_entries(name: str, report: Report) -> Entries:
    """Read a registered data set as far as it can be read.

    Args:
        name: of the data set; COCO's and LVIS's json files are checked entry by entry, others are
            loaded as in training.
        report: told of each problem.
    """
    try:
        metadata = MetadataCatalog.get(name)
        if metadata.get("made_on_first_use") and not _can_be_made(name, metadata, report):
            return Entries()
        json_file = _json_file(metadata)
        if json_file is None or metadata.get("image_root") is None or "://" in json_file:
            return Entries(DatasetCatalog.get(name), class_names(name))
        if metadata.get("panoptic_json") is not None:
            collect_panoptic_json(metadata.panoptic_json, report, name)
        entries = _read_json(name, metadata, report)
        if metadata.get("sem_seg_root") is not None:  # a stuff map belongs to each image
            return Entries(DatasetCatalog.get(name), entries.class_names)
        return entries
    except DatasetError as error:
        report(Problem("data set cannot be loaded", f"data set '{name}'", str(error)))
        return Entries()


def _json_file(metadata: Any) -> Any:
    """The annotation file, also where loading took it out of the evaluator's sight; or None."""
    return metadata.get("json_file") or metadata.get("registered_paths", {}).get("json_file")


def _can_be_made(name: str, metadata: Any, report: Report) -> bool:
    """Have the files made that training reads; if that fails, say all that is wrong."""
    try:
        DatasetCatalog.get(name)
        return True
    except DatasetError:
        found: list[Problem] = []
        if metadata.get("panoptic_json") is not None:
            list_panoptic_problems(metadata, found.append)
        if not found:
            raise
    for problem in found:
        report(problem)
    return False


def _read_json(name: str, metadata: Any, report: Report) -> Entries:
    json_file, is_lvis = _json_file(metadata), metadata.get("evaluator_type") == "lvis"
    content = parse_lists(json_file, read_text(name, json_file))
    for key in ("images", "annotations", "categories"):
        content[key] = _objects(key, content.get(key, []), report)
    if is_lvis:
        content["images"] = [with_file_name(image) for image in content["images"]]
    names = _categories(content["categories"], report)
    _compare_categories(metadata, names, report, by_name=not is_lvis)
    records = Records(contiguous={key: index for index, key in enumerate(in_order(names))})
    extra = IMAGE_KEYS if is_lvis else ()
    add_images(records, content["images"], metadata.image_root, report, extra)
    missing = records.missing
    for record in records.by_id.values():
        if record["file_name"] in missing:
            where = f"image {shown(record['image_id'])}"
            file = some([record["file_name"]])
            reason = f"{file} does not exist{missing[record['file_name']]}"
            report(Problem("image file missing", where, reason))
    add_annotations(records, content["annotations"], report)
    notice_repetitions(records, report)
    _notice_oddities(records, names, report)
    there = [record for record in records.in_order() if record["file_name"] not in missing]
    return Entries(there, metadata.get("thing_classes") or [names[key] for key in in_order(names)])


def _objects(key: str, entries: list[Any], report: Report) -> list[dict[str, Any]]:
    """The entries of a list that are objects."""
    for place, reason in not_objects(entries):
        report(Problem("entry of another form", f"'{key}', entry {place} (from 0)", reason))
    return [entry for entry in entries if isinstance(entry, dict)]


def _categories(categories: list[dict[str, Any]], report: Report) -> dict[Any, str]:
    """Names by id of the categories that have both."""
    names: dict[int, str] = {}
    for category in categories:
        where = f"category {shown(category.get('id'))}"
        if not is_category(category):
            reason = "needs an 'id' (whole number or text) and a 'name'"
            report(Problem("category incomplete", where, reason))
        elif category["id"] in names:
            report(
                Problem("category id used more than once", where, f"also {shown(category['name'])}")
            )
        else:
            names[category["id"]] = category["name"]
    if mixes_kinds(names):
        report(Problem("category ids of two kinds", "'categories'", MIXED_IDS))
    if not names:
        report(Problem("no categories", "'categories'", "the list has no usable entry"))
    for repeated, count in Counter(names.values()).items():
        if count > 1:
            where = f"category {shown(repeated)}"
            report(Problem("category name used more than once", where, f"{count} ids", NOTICE))
    return names


def _compare_categories(
    metadata: Any, names: dict[int, str], report: Report, *, by_name: bool
) -> None:
    """Compare with the classes that a built-in data set has."""
    known = metadata.get("thing_classes")
    if known is None:
        return
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or range(1, len(known) + 1)
    other = in_order(set(names) ^ set(ids))
    found = [names[key] for key in in_order(names)]
    if other:
        reason = f"the file has {len(names)}, the data set {len(known)}; different ids: "
        report(Problem("other categories than expected", "'categories'", reason + some(other)))
    elif by_name and found != list(known):
        pairs = zip(found, known, strict=True)
        differing = [f"{shown(a)} instead of {shown(b)}" for a, b in pairs if a != b]
        report(Problem("other categories than expected", "'categories'", some(differing)))


def _notice_oddities(records: Records, names: dict[int, str], report: Report) -> None:
    """Notice what training takes, but hardly was meant."""
    used: set[int] = set()
    for record in records.by_id.values():
        for annotation in record["annotations"]:
            used.add(annotation["category_id"])
            if isinstance(annotation["segmentation"], list):
                _notice_beyond(annotation, record, report)
    empty = [names[key] for key, index in records.contiguous.items() if index not in used]
    if empty and names:
        reason = f"{len(empty)} of {len(names)}: {some(empty)}"
        report(Problem("classes without annotations", "'categories'", reason, NOTICE))


def _notice_beyond(annotation: dict[str, Any], record: dict[str, Any], report: Report) -> None:
    x, y, width, height = segmentation_box(annotation["segmentation"])
    across, down = x + width - record["width"], y + height - record["height"]
    beyond = max(-x, -y, across, down)
    if beyond > _TOLERANCE and max(across - width, down - height, -x - width, -y - height) < 0:
        reason = f"reaches {beyond:.0f} pixels beyond {record['file_name']}"
        where = f"annotation {annotation['id']}"
        report(Problem("reaches beyond the image", where, reason, NOTICE))
