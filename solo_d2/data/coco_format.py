"""Registration and loading of data sets in COCO format, with errors that name what is wrong.

The result is what `detectron2.data.datasets.coco.load_coco_json` returns (a test compares them);
the json is parsed once and checked while it is converted.
"""

import functools
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.coco_json import some
from solo_d2.data.coco_records import (
    ANNOTATED_TWICE,
    COVERS_NOTHING,
    FILE_USED_TWICE,
    OUTSIDE,
    PART_COVERS_NOTHING,
    UNKNOWN_IMAGE,
    Records,
    read_records,
)
from solo_d2.data.problems import Problem, count_reasons, refuse_errors
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

# What the log says of problems that do not stop a training.
_WARNINGS = {
    COVERS_NOTHING: "annotations cover nothing and are left out",
    PART_COVERS_NOTHING: "annotations have polygons that cover nothing and are left out",
    UNKNOWN_IMAGE: "annotations belong to images that the file does not list and are left out",
    OUTSIDE: "annotations lie outside their image and are left out in training",
    ANNOTATED_TWICE: "annotations have the class and box of another one in their image",
    FILE_USED_TWICE: "images have the file of another image",
}


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
    """Return whether a data set of these paths is registered.

    Args:
        name: of the data set.
        paths: by their keys in the metadata.
        key: of the config, for the message.

    Raises:
        ConfigError: the name means other files.
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
    is then taken out of the metadata, as it is where something is missing that pycocotools needs:
    Detectron2's COCOEvaluator would fail on the file, and without the entry it evaluates against
    the annotations as they were loaded.

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
    if metadata.get("evaluator_type") != "lvis":  # whose evaluator and metadata need neither
        metadata.thing_classes = records.class_names
        metadata.thing_dataset_id_to_contiguous_id = records.contiguous
        if not records.fit_for_evaluator and metadata.get("json_file") == os.fspath(json_file):
            del metadata.json_file
    return records.in_order()


def _warn(json_file: str | Path, problems: list[Problem], records: Records) -> None:
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
