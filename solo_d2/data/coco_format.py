"""Registration and loading of data sets in COCO format, with errors that name what is wrong.

The result is what `detectron2.data.datasets.coco.load_coco_json` returns (a test compares them);
the json is parsed once and checked while it is converted.
"""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.coco_json import (
    parse,
    read_text,
    some,
    sorted_categories,
)
from solo_d2.data.coco_records import (
    ANNOTATED_TWICE,
    COVERS_NOTHING,
    FILE_USED_TWICE,
    OUTSIDE,
    PART_COVERS_NOTHING,
    UNKNOWN_IMAGE,
    Records,
    add_annotations,
    add_images,
    notice_repetitions,
)
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.problems import ERROR, Problem, count_reasons
from solo_d2.utils.errors import ConfigError, DatasetError

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
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        known = metadata.get("registered_paths") or {key: metadata.get(key) for key in paths}
        for key, path in paths.items():
            if known[key] is None or os.path.abspath(known[key]) != os.path.abspath(path):
                raise ConfigError(
                    f"DATASETS.COCO_FORMAT: the data set name '{name}' is taken: its {key} is "
                    f"{known[key]}, not {path}. Choose another name"
                )
        return
    DatasetCatalog.register(name, functools.partial(load_coco_format, name, **paths))
    metadata.set(evaluator_type="coco", registered_paths=paths, **paths)


def load_coco_format(
    name: str, json_file: str | Path, image_root: str | Path
) -> list[dict[str, Any]]:
    """Load a data set in COCO format as Detectron2's dataset dicts, and fill in its metadata.

    Annotations whose segmentation covers nothing (no area, under three points, no pixel) are
    left out with one warning, and so are those of images that the json does not list. `json_file`
    is then taken out of the metadata, as it is where something is missing that pycocotools needs:
    Detectron2's COCOEvaluator would fail on the file, and without the entry it evaluates against
    the annotations as they were loaded.

    Args:
        name: of the data set, in the catalogs.
        json_file: COCO's instances json.
        image_root: folder of the images.

    Returns:
        One dict per image, by image id. Annotations also have their `id`.

    Raises:
        DatasetError: anything else is wrong; the message names file and annotation.
    """
    content = parse(json_file, read_text(name, json_file))
    categories = sorted_categories(json_file, content["categories"])
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    records = load_records(json_file, image_root, content, contiguous)
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [category["name"] for category in categories]
    metadata.thing_dataset_id_to_contiguous_id = contiguous
    if not records.fit_for_evaluator and metadata.get("json_file") == os.fspath(json_file):
        del metadata.json_file
    return records.in_order()


def load_records(
    json_file: str | Path,
    image_root: str | Path,
    content: dict[str, Any],
    contiguous: dict[int, int],
    extra_keys: Sequence[str] = (),
) -> Records:
    """Convert images and annotations of a parsed json, and warn of what is left out.

    Args:
        json_file: where the content is from, for messages.
        image_root: folder of the images.
        content: with `images` and maybe `annotations`.
        contiguous: from category ids to classes.
        extra_keys: see `add_images`.

    Raises:
        DatasetError: the first error, or all missing images.
    """
    problems: list[Problem] = []

    def report(problem: Problem) -> None:
        if problem.severity == ERROR:
            raise DatasetError(f"{json_file}: {problem}")
        problems.append(problem)

    records = Records(contiguous=contiguous)
    add_images(records, content["images"], image_root, report, extra_keys)
    if not os.path.isdir(image_root):
        raise DatasetError(
            f"The image folder of {json_file} is missing: looked for "
            f"{os.path.abspath(image_root)}. " + where_datasets_are("")
        )
    if records.missing:
        names = [os.path.relpath(file, image_root) for file in records.missing]
        raise DatasetError(
            f"{len(names)} of the {len(records.by_id)} images of {json_file} are missing in "
            f"{os.path.abspath(image_root)}: {some(names)}" + next(iter(records.missing.values()))
        )
    add_annotations(records, content.get("annotations", []), report)
    notice_repetitions(records, report)
    _warn(json_file, problems, content)
    return records


def _warn(json_file: str | Path, problems: list[Problem], content: dict[str, Any]) -> None:
    """Log one line for each kind of problem, with its count, share, reasons and examples."""
    for kind, text in _WARNINGS.items():
        found = [problem for problem in problems if problem.kind == kind]
        if not found:
            continue
        total = len(content["images" if kind == FILE_USED_TWICE else "annotations"])
        reasons = count_reasons(found) if kind in (COVERS_NOTHING, PART_COVERS_NOTHING) else ""
        logger.warning(
            "%s: %d of %d (%.1f%%) %s%s: %s",
            json_file,
            len(found),
            total,
            100 * len(found) / total,
            text,
            f" ({reasons})" * bool(reasons),
            some([problem.where for problem in found]),
        )
