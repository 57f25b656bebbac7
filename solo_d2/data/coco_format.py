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
from detectron2.structures import BoxMode

from solo_d2.data.coco_json import (
    check_image,
    leaves_folder,
    parse,
    read_sorted_categories,
    read_text,
    require_unique,
    some,
    sorted_categories,
)
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.segmentations import clean_segmentation, is_box, segmentation_box
from solo_d2.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)


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


def read_class_names(json_file: str | Path) -> list[str]:
    """Read the class names of a COCO json, in the order of their ids, without parsing it all.

    Raises:
        DatasetError: the file is missing, not JSON, or has no proper categories.
    """
    return [category["name"] for category in read_sorted_categories(json_file)]


def load_coco_format(
    name: str, json_file: str | Path, image_root: str | Path
) -> list[dict[str, Any]]:
    """Load a data set in COCO format as Detectron2's dataset dicts, and fill in its metadata.

    Annotations whose segmentation covers nothing (no area, under three points, no pixel) are
    ignored with one warning. `json_file` is then taken out of the metadata, as it is where a key is
    missing that pycocotools needs: Detectron2's COCOEvaluator would fail on the file, and without
    the entry it evaluates against the annotations as they were loaded.

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
    records = _image_records(json_file, image_root, content["images"])
    _require_images(json_file, image_root, content["images"])

    converter = _AnnotationConverter(str(json_file), records, contiguous)
    for annotation in content["annotations"]:
        converter.add(annotation)
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [category["name"] for category in categories]
    metadata.thing_dataset_id_to_contiguous_id = contiguous
    converter.warn()
    if not converter.fit_for_evaluator and metadata.get("json_file") == os.fspath(json_file):
        del metadata.json_file
    return [records[key] for key in sorted(records, key=lambda key: (isinstance(key, str), key))]


def _image_records(
    json_file: str | Path, image_root: str | Path, images: list[dict[str, Any]]
) -> dict[Any, dict[str, Any]]:
    """Dataset dicts without annotations, by image id."""
    records = {}
    for image in images:
        check_image(json_file, image)
        if leaves_folder(image["file_name"]):
            raise DatasetError(
                f"{json_file}: image {image['id']} has the file name {image['file_name']!r}, which "
                f"is not inside the image folder {image_root}"
            )
        records[image["id"]] = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
    require_unique(json_file, "image", [image["id"] for image in images])
    return records


def _require_images(
    json_file: str | Path, image_root: str | Path, images: list[dict[str, Any]]
) -> None:
    """Check that the image files exist, by one listing of each folder."""
    if not os.path.isdir(image_root):
        raise DatasetError(
            f"The image folder of {json_file} is missing: looked for "
            f"{os.path.abspath(image_root)}. " + where_datasets_are("")
        )
    listings: dict[str, set[str]] = {}
    missing = []
    for image in images:
        folder, base = os.path.split(os.path.join(image_root, image["file_name"]))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            missing.append(image["file_name"])
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {len(images)} images of {json_file} are missing in "
            f"{os.path.abspath(image_root)}: {some(missing)}"
        )


class _AnnotationConverter:
    """Checks annotations one by one and adds them to their image's record."""

    def __init__(
        self, json_file: str, records: dict[Any, dict[str, Any]], contiguous: dict[int, int]
    ) -> None:
        self.json_file = json_file
        self.records = records
        self.contiguous = contiguous
        self.seen: set[Any] = set()
        self.ignored: list[Any] = []
        self.fit_for_evaluator = True

    def add(self, annotation: dict[str, Any]) -> None:
        key = annotation.get("id")
        record = self._check(annotation)
        try:
            segmentation = clean_segmentation(
                annotation.get("segmentation"), record["height"], record["width"]
            )
        except ValueError as error:
            self._refuse(key, f"{error} (image {record['file_name']})")
        if segmentation is None:
            self.ignored.append(key)
            return
        if not is_box(annotation.get("bbox")):
            self.fit_for_evaluator = False
            annotation["bbox"] = segmentation_box(segmentation)
        if "iscrowd" not in annotation or "area" not in annotation:
            self.fit_for_evaluator = False
        item = {
            "id": key,
            "iscrowd": annotation.get("iscrowd", 0),
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": self.contiguous[annotation["category_id"]],
            "segmentation": segmentation,
        }
        if annotation.get("keypoints"):
            # As Detectron2: from pixel indices to coordinates.
            item["keypoints"] = [
                value if index % 3 == 2 else value + 0.5
                for index, value in enumerate(annotation["keypoints"])
            ]
        record["annotations"].append(item)

    def _check(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """Check the ids; the record of the annotation's image."""
        key = annotation.get("id")
        if not isinstance(key, int):
            self._refuse(key, "every annotation needs a whole number 'id'")
        if key in self.seen:
            self._refuse(key, "the id is used more than once: give every annotation its own")
        self.seen.add(key)
        category, image = annotation.get("category_id"), annotation.get("image_id")
        if not isinstance(category, int) or category not in self.contiguous:
            known = some(sorted(self.contiguous))
            self._refuse(key, f"category_id {category!r} is not among the 'categories' ({known})")
        if not isinstance(image, (int, str)) or image not in self.records:
            self._refuse(key, f"image_id {image!r} is not among the 'images'")
        if annotation.get("ignore"):
            self._refuse(key, "'ignore' is not supported: remove it, or use 'iscrowd'")
        return self.records[image]

    def _refuse(self, key: Any, reason: str) -> None:
        raise DatasetError(f"{self.json_file}: annotation {key}: {reason}")

    def warn(self) -> None:
        """Warn once of what was ignored."""
        if self.ignored:
            self.fit_for_evaluator = False
            logger.warning(
                "%s: %d of %d annotations cover nothing (no area, under three points or no pixel) "
                "and are ignored: annotation ids %s",
                self.json_file,
                len(self.ignored),
                len(self.seen),
                some(self.ignored),
            )
