"""The heads; a new one is one file here, one entry in the registry and one YAML."""

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, SOLOHeadBase, build_solo_head
from solo_d2.modeling.heads.decoupled_solo import DecoupledSOLOHead
from solo_d2.modeling.heads.decoupled_solo_light import DecoupledSOLOLightHead
from solo_d2.modeling.heads.solo import SOLOHead
from solo_d2.modeling.heads.solov2 import SOLOv2Head

__all__ = [
    "SOLO_HEAD_REGISTRY",
    "DecoupledSOLOHead",
    "DecoupledSOLOLightHead",
    "SOLOHead",
    "SOLOHeadBase",
    "SOLOv2Head",
    "build_solo_head",
]
