"""Swin-FPN (arXiv:2103.14030), with Detectron2's Swin Transformer."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, SwinTransformer

from solo_d2.config.rules import require
from solo_d2.modeling.backbones.pyramid import build_fpn, require_freezable, require_timm
from solo_d2.utils.errors import ConfigError


@BACKBONE_REGISTRY.register()
def build_solo_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a Swin Transformer with stages "p0" to "p3" for MODEL.FPN.IN_FEATURES.

    MODEL.BACKBONE.FREEZE_AT: 0 nothing, 1 the patch embedding, 2 also the first stage, and so on.

    Args:
        cfg: MODEL.SWIN, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT are read.
        input_shape: channels of the images.

    Raises:
        ConfigError: the keys of MODEL.SWIN do not fit each other or MODEL.FPN.IN_FEATURES, or the
            package timm is missing.
    """
    require_timm("Swin")
    keys = cfg.MODEL.SWIN
    stages = [f"p{stage}" for stage in range(len(keys.DEPTHS))]
    in_features = cfg.MODEL.FPN.IN_FEATURES
    if len(keys.NUM_HEADS) != len(keys.DEPTHS):
        raise ConfigError("MODEL.SWIN.NUM_HEADS and MODEL.SWIN.DEPTHS must be of one length")
    for stage, heads in enumerate(keys.NUM_HEADS):
        if (channels := keys.EMBED_DIM << stage) % heads:
            raise ConfigError(
                f"MODEL.SWIN.NUM_HEADS: {heads} heads can't share the {channels} channels of stage "
                f"p{stage}"
            )
    require_freezable(cfg, 1 + len(stages))
    known = set(in_features) <= set(stages) and in_features[-1:] == stages[-1:]
    allowed = f"stages of Swin, finest first, up to its last: {stages}"
    require(known, "MODEL.FPN.IN_FEATURES", in_features, allowed)
    swin = SwinTransformer(
        in_chans=input_shape.channels,
        embed_dim=keys.EMBED_DIM,
        depths=keys.DEPTHS,
        num_heads=keys.NUM_HEADS,
        window_size=keys.WINDOW_SIZE,
        drop_path_rate=keys.DROP_PATH_RATE,
        out_indices=[stages.index(name) for name in in_features],
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT or -1,
    )
    fpn = build_fpn(cfg, swin)
    for stage in swin.out_indices:
        # The norm of a stage is used by its lateral convolution only.
        lateral = getattr(fpn, f"fpn_lateral{stage + 2}")  # stride 4 is level 2
        if not lateral.weight.requires_grad:
            getattr(swin, f"norm{stage}").requires_grad_(False)
    return fpn
