"""Detectron2 models: backbones, heads and meta-architectures, registered on import."""

from solo_d2.config import add_solo_config
from solo_d2.modeling import backbones as _backbones  # noqa: F401  (registers them)
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, SOLOv2Head, build_solo_head
from solo_d2.modeling.mask_features import MaskFeatureBranch
from solo_d2.modeling.meta_arch import SOLO, PanopticSOLO

__all__ = [
    "SOLO",
    "SOLO_HEAD_REGISTRY",
    "MaskFeatureBranch",
    "PanopticSOLO",
    "SOLOv2Head",
    "add_solo_config",
    "build_solo_head",
]
