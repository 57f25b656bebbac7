"""Replace Detectron2 loaders that depend on broken packages.

LVIS (arXiv:1908.03195): Detectron2's loader imports `lvis`, whose release fails with current NumPy.
Our loader returns the same dicts; annotations also have `id`, and `iscrowd` 0.
"""

import functools
from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.data.cityscapes_format import load_cityscapes_format
from solo_d2.data.coco_format import load_coco_format


def use_own_loaders(names: Iterable[str]) -> None:
    """Replace Detectron2's LVIS and Cityscapes loaders by ours, for the named data sets.

    Other data sets are left alone because the catalog is shared by the whole process.
    """
    for name in names:
        if name not in DatasetCatalog:
            continue
        defined_in = getattr(DatasetCatalog[name], "__module__", None)
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        if defined_in == "detectron2.data.datasets.lvis":
            files = metadata.json_file, metadata.image_root
            DatasetCatalog[name] = functools.partial(load_coco_format, name, *files)
        elif defined_in == "detectron2.data.datasets.builtin" and kind == "cityscapes_instance":
            DatasetCatalog[name] = functools.partial(load_cityscapes_format, name)
