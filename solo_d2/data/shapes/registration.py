"""Register the generated data set in Detectron2's catalogs. It is written when first loaded."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.coco_format import load_coco_format
from solo_d2.data.panoptic_format import load_panoptic
from solo_d2.data.panoptic_json import split_categories
from solo_d2.data.shapes.drawing import SPLITS, STUFF_CLASSES, THING_CLASSES
from solo_d2.data.shapes.folder import CATEGORIES, THING_COLORS, default_root, ensure_shapes


def register_shapes(root: Path | str | None = None) -> None:
    """Register `shapes_train` and `shapes_val`, and both with the suffix `_panoptic`.

    Nothing is read or written before a data set is loaded. A second call changes the folder if it
    names another one. Other data sets of the same names are kept.
    """
    root = default_root() if root is None else Path(root)
    for split in SPLITS:
        json_file = root / "annotations" / f"instances_{split}.json"
        common = {"json_file": str(json_file), "image_root": str(root / split)}
        _register(
            f"shapes_{split}",
            functools.partial(_load, root, f"shapes_{split}"),
            thing_classes=list(THING_CLASSES),
            thing_colors=[list(colour) for colour in THING_COLORS],
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(THING_CLASSES))},
            stuff_classes=list(STUFF_CLASSES),
            evaluator_type="coco",
            **common,
        )
        _register(
            f"shapes_{split}_panoptic",
            functools.partial(_load, root, f"shapes_{split}_panoptic"),
            panoptic_json=str(root / "annotations" / f"panoptic_{split}.json"),
            panoptic_root=str(root / f"panoptic_{split}"),
            sem_seg_root=str(root / f"panoptic_stuff_{split}"),
            evaluator_type="coco_panoptic_seg",
            **split_categories("shapes", CATEGORIES).metadata(),
            **common,
        )


def _register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        ours = known.get("made_on_first_use") is True
        if not ours or known.json_file == metadata["json_file"]:
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(made_on_first_use=True, **metadata)


def _load(root: Path, name: str) -> list[dict[str, Any]]:
    ensure_shapes(root)
    metadata = MetadataCatalog.get(name)
    if metadata.get("panoptic_json") is not None:
        return load_panoptic(name)
    return load_coco_format(name, metadata.json_file, metadata.image_root)
