"""SOLO and SOLOv2 for Detectron2. Public names are loaded on first use (PEP 562)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "add_solo_config": "solo_d2.modeling",
    "ConfigError": "solo_d2.utils.errors",
    "DatasetError": "solo_d2.utils.errors",
    "ImageError": "solo_d2.utils.images",
    "matrix_nms": "solo_d2.ops.matrix_nms",
    "Predictor": "solo_d2.api.predictor",
    "Result": "solo_d2.api.results",
    "Tiles": "solo_d2.modeling.tiles",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
