"""RegNet-FPN (arXiv:2003.13678), with Detectron2's RegNet."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem

from solo_d2.modeling.backbones.pyramid import build_fpn, require_freezable
from solo_d2.utils.errors import ConfigError, first_line


@BACKBONE_REGISTRY.register()
def build_solo_regnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build RegNetX, or RegNetY with MODEL.REGNET.SE_RATIO, with stages "s1" to "s4".

    Args:
        cfg: MODEL.REGNET, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT are read.
        input_shape: channels of the images; RegNet supports 3 only.

    Raises:
        ConfigError: the parameters are invalid, or MODEL.FPN.IN_FEATURES are not its features.
    """
    keys = cfg.MODEL.REGNET
    try:
        regnet = RegNet(
            stem_class=SimpleStem,
            stem_width=keys.STEM_WIDTH,
            block_class=ResBottleneckBlock,
            depth=keys.DEPTH,
            w_a=keys.W_A,
            w_0=keys.W_0,
            w_m=keys.W_M,
            group_width=keys.GROUP_WIDTH,
            se_ratio=keys.SE_RATIO,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
            norm=keys.NORM,
            out_features=cfg.MODEL.FPN.IN_FEATURES,
        )
    except AssertionError as error:  # raised by Detectron2 for invalid parameters
        raise ConfigError(
            f"MODEL.REGNET and MODEL.FPN.IN_FEATURES describe no RegNet: {first_line(error)}"
        ) from error
    require_freezable(cfg)
    last = regnet.stages_and_names[-1][1]
    if cfg.MODEL.FPN.IN_FEATURES[-1] != last:
        raise ConfigError(f"MODEL.FPN.IN_FEATURES must end in {last!r}, RegNet's last stage")
    return build_fpn(cfg, regnet)
