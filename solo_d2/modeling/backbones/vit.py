"""Detectron2's plain Vision Transformer with a simple pyramid (ViTDet, arXiv:2203.16527)."""

from functools import partial
from typing import cast

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid, ViT
from torch import nn

from solo_d2.config.rules import require
from solo_d2.modeling.backbones.pyramid import (
    max_pooled_level,
    read_features,
    require_freezable,
    require_timm,
)
from solo_d2.utils.errors import ConfigError

PATCH_SIZE = 16
# Strides 4, 8, 16 and 32: "p2" to "p5"; "p6" is max-pooled.
SCALE_FACTORS = (4.0, 2.0, 1.0, 0.5)


class ViTPyramid(SimpleFeaturePyramid):
    """Detectron2's pyramid, which pads images to a multiple of its largest stride."""

    @property
    def size_divisibility(self) -> int:
        """The largest stride, which Detectron2 provides under a misspelled name."""
        return cast(int, self._size_divisibility)


@BACKBONE_REGISTRY.register()
def build_solo_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTPyramid:
    """Build a ViT with windowed and global attention blocks, and a pyramid from its last feature.

    MODEL.BACKBONE.FREEZE_AT: 0 nothing, 1 the patch and position embedding, 2 also the first
    block, and so on.

    Args:
        cfg: MODEL.VIT, MODEL.FPN.OUT_CHANNELS, MODEL.FPN.NORM and MODEL.BACKBONE.FREEZE_AT are
            read.
        input_shape: channels of the images.

    Raises:
        ConfigError: the keys contradict each other, or the package timm is missing.
    """
    require_timm("ViT")
    keys = cfg.MODEL.VIT
    if not cfg.MODEL.FPN.NORM:
        raise ConfigError('MODEL.FPN.NORM is "", but the pyramid of ViT needs a norm, such as "LN"')
    if keys.EMBED_DIM % keys.NUM_HEADS:
        raise ConfigError(
            f"MODEL.VIT.NUM_HEADS: {keys.NUM_HEADS} heads can't share {keys.EMBED_DIM} channels"
        )
    require_freezable(cfg, 1 + keys.DEPTH, "embedding and blocks")
    known = set(keys.GLOBAL_BLOCKS) <= set(range(keys.DEPTH))
    allowed = f"blocks from 0 to {keys.DEPTH - 1}, as MODEL.VIT.DEPTH is {keys.DEPTH}"
    require(known, "MODEL.VIT.GLOBAL_BLOCKS", keys.GLOBAL_BLOCKS, allowed)
    vit = ViT(
        img_size=keys.IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        in_chans=input_shape.channels,
        embed_dim=keys.EMBED_DIM,
        depth=keys.DEPTH,
        num_heads=keys.NUM_HEADS,
        drop_path_rate=keys.DROP_PATH_RATE,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=keys.WINDOW_SIZE,
        window_block_indexes=sorted(set(range(keys.DEPTH)) - set(keys.GLOBAL_BLOCKS)),
    )
    if (freeze_at := cfg.MODEL.BACKBONE.FREEZE_AT) > 0:
        vit.patch_embed.requires_grad_(False)
        vit.pos_embed.requires_grad_(False)
    for block in vit.blocks[: max(0, freeze_at - 1)]:
        block.requires_grad_(False)
    pyramid = ViTPyramid(
        net=vit,
        in_feature="last_feat",
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=SCALE_FACTORS,
        top_block=max_pooled_level(int(PATCH_SIZE / SCALE_FACTORS[-1])),
        norm=cfg.MODEL.FPN.NORM,
    )
    read = read_features(cfg, pyramid)
    for name, stage in zip(pyramid.output_shape(), pyramid.stages, strict=False):
        if name not in read:
            stage.requires_grad_(False)
    return pyramid
