"""Registration of the generated data set in Detectron2's catalogs; made when it is first loaded."""

import functools
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.coco_format import load_coco_format
from solo_d2.data.shapes.drawing import SPLITS, STUFF_CLASSES, THING_CLASSES
from solo_d2.data.shapes.folder import default_root, ensure_shapes

# RGB of each thing class, in overlays.
THING_COLORS = (
    (230, 60, 60),
    (60, 140, 230),
    (245, 180, 40),
    (170, 80, 220),
    (60, 190, 90),
    (240, 120, 190),
    (70, 200, 210),
)


def register_shapes(root: Path | str | None = None) -> None:
    """Register `shapes_train` and `shapes_val`; nothing is read or written until one is loaded.

    Calling it again does nothing, or moves the data set where another folder is given.

    Args:
        root: folder of the data set, `default_root()` if None.
    """
    root = default_root() if root is None else Path(root)
    for split in SPLITS:
        name = f"shapes_{split}"
        json_file = root / "annotations" / f"instances_{split}.json"
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).json_file == str(json_file):
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_load_shapes, root, split))
        MetadataCatalog.get(name).set(
            thing_classes=list(THING_CLASSES),
            thing_colors=[list(colour) for colour in THING_COLORS],
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(THING_CLASSES))},
            stuff_classes=list(STUFF_CLASSES),
            evaluator_type="coco",
            json_file=str(json_file),
            image_root=str(root / split),
            made_on_first_use=True,
        )


def _load_shapes(root: Path, split: str) -> list[dict[str, Any]]:
    ensure_shapes(root)
    json_file = root / "annotations" / f"instances_{split}.json"
    return load_coco_format(f"shapes_{split}", str(json_file), str(root / split))
