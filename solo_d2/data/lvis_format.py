"""Loading of LVIS's json files (arXiv:1908.03195), v0.5 and v1.

Detectron2's loader imports the package `lvis`, whose release fails with today's NumPy and which is
not needed to read a file. The result is the same; annotations also have `id`, and `iscrowd` 0.
"""

import functools
from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.coco_format import load_coco_format

# Where Detectron2's loader, and the function that registers it, are defined.
_DETECTRON2_MODULE = "detectron2.data.datasets.lvis"


def use_own_lvis_loaders(names: Iterable[str]) -> None:
    """Load by this project those of the data sets that Detectron2's loader would load.

    Only for data sets that a config or a caller names: the catalog is the whole process's.
    """
    for name in names:
        loader = DatasetCatalog[name] if name in DatasetCatalog else None
        if getattr(loader, "__module__", None) == _DETECTRON2_MODULE:
            DatasetCatalog[name] = functools.partial(load_lvis_format, name)


def load_lvis_format(name: str) -> list[dict[str, Any]]:
    """Load a registered data set in LVIS's format; see `load_coco_format`."""
    metadata = MetadataCatalog.get(name)
    return load_coco_format(name, metadata.json_file, metadata.image_root)
