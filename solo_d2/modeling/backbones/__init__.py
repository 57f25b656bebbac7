"""Backbones for MODEL.BACKBONE.NAME, registered in Detectron2's registry when this is imported."""

from solo_d2.modeling.backbones.layer_decay import layer_lr_factor
from solo_d2.modeling.backbones.pyramid import build_fpn
from solo_d2.modeling.backbones.regnet import build_solo_regnet_fpn_backbone
from solo_d2.modeling.backbones.resnet import build_solo_resnet_fpn_backbone
from solo_d2.modeling.backbones.swin import build_solo_swin_fpn_backbone
from solo_d2.modeling.backbones.timm import build_solo_timm_fpn_backbone
from solo_d2.modeling.backbones.vit import build_solo_vit_backbone

__all__ = [
    "build_fpn",
    "build_solo_regnet_fpn_backbone",
    "build_solo_resnet_fpn_backbone",
    "build_solo_swin_fpn_backbone",
    "build_solo_timm_fpn_backbone",
    "build_solo_vit_backbone",
    "layer_lr_factor",
]
