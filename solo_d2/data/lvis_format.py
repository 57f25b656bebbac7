"""Loading of LVIS's json files (arXiv:1908.03195), v0.5 and v1.

Detectron2's loader imports the package `lvis`, whose release fails with today's NumPy and which is
not needed to read a file. The result is the same.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.coco_format import load_records
from solo_d2.data.coco_json import in_order, parse, read_text, some, sorted_categories
from solo_d2.utils.errors import DatasetError

# Categories of an image in which not every object is annotated, and that surely are not in it.
IMAGE_KEYS = ("not_exhaustive_category_ids", "neg_category_ids")


# Where Detectron2's loader, and the function that registers it, are defined.
_DETECTRON2_MODULE = "detectron2.data.datasets.lvis"


def use_own_lvis_loaders(names: Iterable[str]) -> None:
    """Load by this module those of the data sets that Detectron2's loader would load.

    Only for data sets that a config or a caller names: the catalog is the whole process's.
    """
    for name in names:
        loader = DatasetCatalog[name] if name in DatasetCatalog else None
        if getattr(loader, "__module__", None) == _DETECTRON2_MODULE:
            DatasetCatalog[name] = functools.partial(load_lvis_format, name)


def load_lvis_format(name: str) -> list[dict[str, Any]]:
    """Load a registered data set in LVIS's format as Detectron2's dataset dicts.

    Args:
        name: of the data set; its metadata name files and classes.

    Returns:
        What `detectron2.data.datasets.lvis.load_lvis_json` returns; annotations also have their
        `id`, and `iscrowd` 0.

    Raises:
        DatasetError: something is wrong; the message names file and annotation.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.json_file
    content = read_lvis_json(name, json_file)
    contiguous = lvis_classes(name, json_file, content)
    records = load_records(json_file, metadata.image_root, content, contiguous, IMAGE_KEYS)
    return records.in_order()


def read_lvis_json(name: str, json_file: str | Path) -> dict[str, Any]:
    """Parse a file of LVIS and give its images the file names that their addresses end in.

    Raises:
        DatasetError: it is missing, or not in this format.
    """
    content = parse(json_file, read_text(name, json_file))
    content["images"] = [with_file_name(image) for image in content["images"]]
    return content


def with_file_name(image: dict[str, Any]) -> dict[str, Any]:
    """Name an image's file: the folder, train2017 or val2017, stands in its address alone."""
    address = image.get("coco_url")
    if not isinstance(address, str) or "/" not in address:
        return image
    return {**image, "file_name": "/".join(address.split("/")[-2:])}


def lvis_classes(name: str, json_file: str | Path, content: dict[str, Any]) -> dict[int, int]:
    """From category ids to classes, which are those of the metadata.

    Raises:
        DatasetError: the categories of the file are not those of the data set.
    """
    metadata = MetadataCatalog.get(name)
    ids = [category["id"] for category in sorted_categories(json_file, content["categories"])]
    known = metadata.get("thing_dataset_id_to_contiguous_id")
    if known is None:
        known = {number + 1: number for number in range(len(metadata.thing_classes))}
    other = in_order(set(ids) ^ set(known))
    if other:
        raise DatasetError(
            f"{json_file}: data set '{name}' has {len(known)} categories, the file {len(ids)}; "
            f"category ids in only one of them: {some(other)}. Is it a file of another version?"
        )
    return {key: known[key] for key in ids}
