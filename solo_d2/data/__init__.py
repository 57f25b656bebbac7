"""Data: the generated data set, COCO-format folders, class counts, the mapper.

Importing this package adds data sets to Detectron2's catalogs: `shapes_train`, `shapes_val`, both
also with `_panoptic` appended, and `cityscapes_fine_panoptic_{train,val}_separated`. It changes
nothing that is registered already. Without Detectron2 only `shapes` (to draw and to write) and
`panoptic_conversion` work.
"""

import importlib
from typing import Any

_PUBLIC = {
    "ShapesParams": "solo_d2.data.shapes.folder",
    "ensure_shapes": "solo_d2.data.shapes.folder",
    "register_shapes": "solo_d2.data.shapes.registration",
    "register_panoptic_format": "solo_d2.data.panoptic_format",
    "ensure_converted": "solo_d2.data.panoptic_conversion",
    "register_coco_format": "solo_d2.data.coco_format",
    "load_coco_format": "solo_d2.data.coco_format",
    "DATASET_FORMATS": "solo_d2.data.catalog",
    "check_datasets": "solo_d2.data.catalog",
    "register_datasets_of_config": "solo_d2.data.catalog",
    "require_model_classes": "solo_d2.data.catalog",
    "resolve_num_classes": "solo_d2.data.catalog",
    "SOLODatasetMapper": "solo_d2.data.mapper",
}
__all__ = sorted(_PUBLIC)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


try:
    from solo_d2.data.panoptic_format import register_cityscapes_separated as _register_cityscapes
    from solo_d2.data.shapes.registration import register_shapes as _register_shapes
except ImportError as _error:
    if (_error.name or "").split(".")[0] != "detectron2":
        raise
else:
    _register_shapes()
    _register_cityscapes()
