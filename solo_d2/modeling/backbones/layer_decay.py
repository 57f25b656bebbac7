"""Layer-wise decay of the learning rate in transformers and other deep backbones."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import nn

from solo_d2.config.rules import require
from solo_d2.modeling.backbones.timm import timm_backbone
from solo_d2.modeling.backbones.vit import build_solo_vit_backbone


def layer_lr_factor(cfg: CfgNode, model: nn.Module) -> Callable[[str], float] | None:
    """Return a function from parameter names to factors of the learning rate.

    The factor decays by MODEL.VIT.LR_DECAY or MODEL.TIMM.LR_DECAY from each block to the one before
    (ViTDet, appendix).

    Args:
        cfg: the model's config.
        model: the model, from which the blocks of a timm backbone are read.

    Returns:
        The function; None for other backbones, or if all factors are 1.

    Raises:
        ConfigError: the blocks are unknown.
    """
    if cfg.MODEL.BACKBONE.NAME == build_solo_vit_backbone.__name__:
        vit = cfg.MODEL.VIT
        return partial(get_vit_lr_decay_rate, lr_decay_rate=vit.LR_DECAY, num_layers=vit.DEPTH)
    backbone = timm_backbone(model)
    if backbone is None or cfg.MODEL.TIMM.LR_DECAY == 1:
        return None
    groups = {f"backbone.bottom_up.net.{name}": i for name, i in backbone.groups().items()}
    allowed = f"1.0: timm does not list the blocks of {backbone.name}"
    require(bool(groups), "MODEL.TIMM.LR_DECAY", cfg.MODEL.TIMM.LR_DECAY, allowed)
    last = 1 + max(groups.values())
    return lambda name: cfg.MODEL.TIMM.LR_DECAY ** (last - groups.get(name, last))
