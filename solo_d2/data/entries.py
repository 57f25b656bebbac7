"""Find all problems in the entries of a data set's JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.catalog import class_names
from solo_d2.data.coco_format import Records, read_records
from solo_d2.data.coco_json import some
from solo_d2.data.panoptic_conversion import report_panoptic_problems
from solo_d2.data.panoptic_json import read_panoptic_json
from solo_d2.data.problems import NOTICE, Problem, Report
from solo_d2.data.segmentations import segmentation_box
from solo_d2.utils.errors import DatasetError, shown

# Annotations may exceed the image by this many pixels, since tools round differently.
_TOLERANCE = 2.0


def read_entries(name: str, report: Report) -> tuple[list[dict[str, Any]], Sequence[str]]:
    """Read the usable part of a registered data set, and report each problem.

    COCO and LVIS json files are checked entry by entry, other data sets are loaded as in training.

    Returns:
        The dataset dicts whose image files exist, and the class names.
    """
    metadata = MetadataCatalog.get(name)
    try:
        if metadata.get("made_on_first_use") and not _can_be_made(name, metadata, report):
            return [], ()
        # Loading may have removed json_file from the metadata, see `load_coco_format`.
        paths = metadata.get("registered_paths", {})
        json_file = metadata.get("json_file") or paths.get("json_file")
        if json_file is None or metadata.get("image_root") is None or "://" in json_file:
            return DatasetCatalog.get(name), class_names(name)
        if metadata.get("panoptic_json") is not None:
            read_panoptic_json(metadata.panoptic_json, name, report=report)
        found = read_records(json_file, metadata.image_root, report, metadata)
        _notice_oddities(found, report)
        records = found.in_order()
        if metadata.get("sem_seg_root") is not None:  # adds the stuff maps
            records = DatasetCatalog.get(name)
        there = [record for record in records if record["file_name"] not in found.missing]
        return there, metadata.get("thing_classes") or found.class_names
    except DatasetError as error:
        report(Problem("data set cannot be loaded", f"data set '{name}'", str(error)))
        return [], ()


def _can_be_made(name: str, metadata: Any, report: Report) -> bool:
    """Create the files that training reads; if that fails, report all problems."""
    found: list[Problem] = []
    try:
        DatasetCatalog.get(name)
    except DatasetError:
        if metadata.get("panoptic_json") is not None:
            report_panoptic_problems(metadata, found.append)
        if not found:
            raise
    for problem in found:
        report(problem)
    return not found


def _notice_oddities(records: Records, report: Report) -> None:
    """Report valid entries that are probably mistakes."""
    for repeated, count in Counter(records.class_names).items():
        if count > 1:
            where = f"category {shown(repeated)}"
            report(Problem("category name used more than once", where, f"{count} ids", NOTICE))
    used: set[int] = set()
    for record in records.by_id.values():
        for annotation in record["annotations"]:
            used.add(annotation["category_id"])
            if isinstance(annotation["segmentation"], list):
                _notice_beyond(annotation, record, report)
    empty = [name for index, name in enumerate(records.class_names) if index not in used]
    if empty:
        reason = f"{len(empty)} of {len(records.class_names)}: {some(empty)}"
        report(Problem("classes without annotations", "'categories'", reason, NOTICE))


def _notice_beyond(annotation: dict[str, Any], record: dict[str, Any], report: Report) -> None:
    x, y, width, height = segmentation_box(annotation["segmentation"])
    across, down = x + width - record["width"], y + height - record["height"]
    beyond = max(-x, -y, across, down)
    if beyond > _TOLERANCE and max(across - width, down - height, -x - width, -y - height) < 0:
        reason = f"exceeds {record['file_name']} by {beyond:.0f} pixels"
        where = f"annotation {annotation['id']}"
        report(Problem("reaches beyond the image", where, reason, NOTICE))
