"""Registration and loading of data sets in COCO's panoptic format.

Records and metadata are those of Detectron2's "separated" panoptic data sets: instances, and stuff
maps in which class 0 means all things.
"""

import contextlib
import functools
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from solo_d2.data.coco_format import is_registered, load_coco_format
from solo_d2.data.coco_json import some
from solo_d2.data.locations import datasets_root
from solo_d2.data.panoptic_conversion import (
    INSTANCES,
    STAMP,
    STUFF,
    default_folder,
    ensure_converted,
    stuff_name,
)
from solo_d2.data.panoptic_json import (
    PanopticCategories,
    PanopticJson,
    read_categories,
    read_panoptic_json,
)
from solo_d2.utils.errors import DatasetError


def register_panoptic_format(
    name: str,
    panoptic_json: str | Path,
    panoptic_root: str | Path,
    image_root: str | Path,
    converted: str | Path | None = None,
    *,
    evaluator_type: str = "coco_panoptic_seg",
    **metadata: Any,
) -> None:
    """Register a data set in COCO's panoptic format; no file is read until it is needed.

    The panoptic PNGs are converted to instances and stuff maps on the first load. Registering the
    same files under the same name again does nothing.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        panoptic_json: COCO's panoptic json.
        panoptic_root: folder of its PNGs.
        image_root: folder that the json's file names of images are relative to.
        converted: folder of the instances and stuff maps, see `panoptic_conversion`; None:
            beside the PNGs.
        evaluator_type: see `solo_d2.evaluation.build`.
        **metadata: more for Detectron2's catalog.

    Raises:
        ConfigError: the name already means other files.
    """
    folder = default_folder(panoptic_root) if converted is None else Path(converted)
    paths = {
        "panoptic_json": os.fspath(panoptic_json),
        "panoptic_root": os.fspath(panoptic_root),
        "image_root": os.fspath(image_root),
        "json_file": os.fspath(folder / INSTANCES),
        "sem_seg_root": os.fspath(folder / STUFF),
    }
    if is_registered(name, paths, "DATASETS.COCO_PANOPTIC_FORMAT"):
        return
    DatasetCatalog.register(name, functools.partial(_load_converted, name, folder))
    # The conversion creates these.
    made = ("json_file", "sem_seg_root")
    MetadataCatalog.get(name).set(
        evaluator_type=evaluator_type, made_on_first_use=made, **paths, **metadata
    )


def register_cityscapes_separated() -> None:
    """Register `cityscapes_fine_panoptic_{train,val}_separated`, as Detectron2 does for COCO.

    Detectron2's own `cityscapes_fine_panoptic_*` number things and stuff together and list no
    instances.
    """
    root = datasets_root() / "cityscapes"
    for split in ("train", "val"):
        name = f"cityscapes_fine_panoptic_{split}_separated"
        if name in DatasetCatalog:  # may be the user's own
            continue
        panoptic_root = root / "gtFine" / f"cityscapes_panoptic_{split}"
        register_panoptic_format(
            name,
            f"{panoptic_root}.json",
            panoptic_root,
            root / "leftImg8bit" / split,
            evaluator_type="cityscapes_panoptic_seg",
            gt_dir=os.fspath(root / "gtFine" / split),
        )


def fill_metadata(name: str) -> None:
    """Set the classes of a registered data set from its panoptic json, unless they are set."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("stuff_classes") is None and metadata.get("panoptic_json") is not None:
        _set_categories(name, read_categories(metadata.panoptic_json))


def _set_categories(name: str, categories: PanopticCategories) -> None:
    metadata = MetadataCatalog.get(name)
    for key, value in categories.metadata().items():
        if metadata.get(key, value) != value:
            raise DatasetError(
                f"The categories of {metadata.panoptic_json} have changed since this process "
                "read them; start it again"
            )
        metadata.set(**{key: value})


def _load_converted(name: str, folder: Path) -> list[dict[str, Any]]:
    metadata = MetadataCatalog.get(name)
    ensure_converted(
        metadata.panoptic_json, metadata.panoptic_root, folder, image_root=metadata.image_root
    )
    again = (
        f"python tools/convert_panoptic.py --json {metadata.panoptic_json} "
        f"--png-dir {metadata.panoptic_root} --images {metadata.image_root} --output {folder} "
        "--force"
    )
    try:
        records = load_panoptic(name)
    except DatasetError as error:
        if os.fspath(folder / INSTANCES) not in str(error):
            raise
        # The images may be elsewhere since the conversion.
        raise DatasetError(f"{error}. If images were moved, convert again: {again}") from error
    _warn_of_newer_pngs(records, folder, again)
    return records


def _warn_of_newer_pngs(records: list[dict[str, Any]], folder: Path, again: str) -> None:
    """Warn of PNGs that may have changed since the conversion."""
    converted, newer = os.path.getmtime(folder / STAMP), []
    for record in records:
        with contextlib.suppress(OSError):  # training does not read them
            if os.path.getmtime(record["pan_seg_file_name"]) > converted:
                newer.append(os.path.basename(record["pan_seg_file_name"]))
    if newer:
        message = (
            f"{len(newer)} of {len(records)} panoptic PNGs are newer than their conversion in "
            f"{folder}, which training reads: {some(newer)}. If they have changed, convert again: "
            + again
        )
        log_first_n(logging.WARNING, message, key="message", name=__name__)


def load_panoptic(name: str) -> list[dict[str, Any]]:
    """Load a registered data set that has been converted.

    Returns:
        One dict per image, by image id, as of `load_coco_format`, with `sem_seg_file_name`,
        `pan_seg_file_name` and `segments_info`. Its segments have `isthing` and, in `category_id`,
        the thing or stuff class. Raises DatasetError, naming the file, if one is missing or wrong.
    """
    metadata = MetadataCatalog.get(name)
    content = read_panoptic_json(metadata.panoptic_json, name, metadata.panoptic_root)
    _set_categories(name, content.categories)
    _warn_of_missing_entries(metadata.panoptic_json, content)
    records = load_coco_format(name, metadata.json_file, metadata.image_root)
    things = content.categories.thing_ids
    classes = things | content.categories.stuff_ids
    for record in records:
        annotation = content.annotations[record["image_id"]]
        png = annotation["file_name"]
        record["pan_seg_file_name"] = os.path.join(metadata.panoptic_root, png)
        record["sem_seg_file_name"] = os.path.join(metadata.sem_seg_root, stuff_name(png))
        record["segments_info"] = [
            {
                **segment,
                "isthing": segment["category_id"] in things,
                "category_id": classes[segment["category_id"]],
            }
            for segment in annotation["segments_info"]
        ]
    return records


def _warn_of_missing_entries(panoptic_json: str, content: PanopticJson) -> None:
    images, annotated = content.images, content.annotations
    missing = [image["file_name"] for key, image in images.items() if key not in annotated]
    if missing:
        total = len(content.images)
        message = (
            f"{panoptic_json}: {len(missing)} of {total} images ({len(missing) / total:.1%}) have "
            f"no entry in 'annotations' and are left out: {some(missing)}"
        )
        log_first_n(logging.WARNING, message, key="message", name=__name__)
