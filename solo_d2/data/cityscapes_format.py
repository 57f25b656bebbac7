"""Load the instances of Cityscapes (arXiv:1604.01685) from the PNGs of instance ids.

Detectron2's loader reads polygons, and imports cityscapesScripts from a path that does not exist in
the released package.
"""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from solo_d2.data.label_pngs import opened_labels
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.workers import in_threads
from solo_d2.utils.errors import DatasetError

_IMAGE, _TRUTH = "_leftImg8bit.png", "_gtFine_instanceIds.png"
# Pillow's modes of grey PNGs of 8 and 16 bits.
_MODES = ("L", "P", "I", "I;16", "I;16B")
# The id of an object is 1000 * label + number, that of a group without individual ids the label.
FIRST_OBJECT = 1000


def label_ids(class_names: list[str]) -> list[int]:
    """Return the Cityscapes label id of each class."""
    known = {category["name"]: category["id"] for category in CITYSCAPES_CATEGORIES}
    return [known[name] for name in class_names]


def truth_file(gt_dir: str | Path, image: str | Path) -> Path:
    """Return the PNG of instance ids for CITY/NAME_leftImg8bit.png."""
    image = Path(image)
    return Path(gt_dir) / image.parent.name / image.name.replace(_IMAGE, _TRUTH)


def read_instance_ids(file: Path) -> NDArray[np.int32]:
    """Read a PNG of instance ids, (H, W) int32; see `FIRST_OBJECT`. DatasetError if that fails."""
    with opened_labels(file, _MODES) as image:
        return np.asarray(image).astype(np.int32)


def load_cityscapes_format(name: str) -> list[dict[str, Any]]:
    """Load a registered data set in Cityscapes format as dataset dicts, sorted by file name.

    Uses thing_classes, image_dir and gt_dir of the metadata. Segmentations are RLE; groups have
    `iscrowd` 1. Raises DatasetError if there are no images, or a PNG cannot be read.
    """
    metadata = MetadataCatalog.get(name)
    classes = {key: index for index, key in enumerate(label_ids(metadata.thing_classes))}
    files = sorted(Path(metadata.image_dir).glob(f"*/*{_IMAGE}"))
    if not files:
        raise DatasetError(f"Data set '{name}' has no image {metadata.image_dir}/CITY/*{_IMAGE}")

    def load(file: Path) -> dict[str, Any]:
        ids = read_instance_ids(truth_file(metadata.gt_dir, file))
        annotations = []
        for key in np.unique(ids).tolist():
            label = key // FIRST_OBJECT if key >= FIRST_OBJECT else key
            if label in classes:
                annotation = {"category_id": classes[label], "iscrowd": int(key < FIRST_OBJECT)}
                described = {**describe_mask(ids == key), "bbox_mode": BoxMode.XYWH_ABS}
                annotations.append(described | annotation)
        return {
            "file_name": str(file),
            "image_id": file.name,
            "height": ids.shape[0],
            "width": ids.shape[1],
            "annotations": annotations,
        }

    return in_threads(load, files)
