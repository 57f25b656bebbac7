"""The heads. A new head is a file here, an entry in the registry and a YAML config."""

from solo_d2.modeling.heads.base import (
    SOLO_HEAD_REGISTRY,
    LevelMasksHead,
    SOLOHeadBase,
    build_solo_head,
    has_mask_feature,
)
from solo_d2.modeling.heads.decoupled_solo import DecoupledSOLOHead, DecoupledSOLOLightHead
from solo_d2.modeling.heads.local_solov2 import LocalSOLOv2Head
from solo_d2.modeling.heads.solo import SOLOHead
from solo_d2.modeling.heads.solov2 import SOLOv2Head

__all__ = [
    "SOLO_HEAD_REGISTRY",
    "DecoupledSOLOHead",
    "DecoupledSOLOLightHead",
    "LevelMasksHead",
    "LocalSOLOv2Head",
    "SOLOHead",
    "SOLOHeadBase",
    "SOLOv2Head",
    "build_solo_head",
    "has_mask_feature",
]
