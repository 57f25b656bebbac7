"""Detectron2 glue: heads, mask feature and meta-architectures, registered when this is imported."""

from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, SOLOv2Head, build_solo_head
from solo_d2.modeling.mask_features import MaskFeatureBranch
from solo_d2.modeling.meta_arch import SOLO

__all__ = ["SOLO", "SOLO_HEAD_REGISTRY", "MaskFeatureBranch", "SOLOv2Head", "build_solo_head"]
