"""The feature pyramid of a backbone, and the levels that the model uses.

Parameters of unused levels are frozen: they get no gradients, which DistributedDataParallel
requires of trainable parameters.
"""

import importlib.util
import math

from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from solo_d2.config.models import is_panoptic, is_solo
from solo_d2.config.rules import require
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, has_mask_feature
from solo_d2.utils.errors import ConfigError


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Build an FPN (arXiv:1612.03144) with one additional max-pooled level.

    Features are named by their stride, "p2" for 4 to "p6" for 64; their number depends on
    MODEL.FPN.IN_FEATURES. Levels that the model does not use are frozen.

    Args:
        cfg: MODEL.FPN and the keys that list the used levels are read.
        bottom_up: the backbone.

    Raises:
        ConfigError: MODEL.FPN.IN_FEATURES are not features of the backbone.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    shapes = bottom_up.output_shape()
    strides = [shapes[name].stride for name in in_features if name in shapes]
    doubling = all(stride == strides[0] << level for level, stride in enumerate(strides))
    if not doubling or not 0 < len(strides) == len(in_features):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {list(in_features)}, but must be features of the backbone, "
            "finest first, the stride doubling from each to the next; their strides are "
            f"{ {name: shape.stride for name, shape in shapes.items()} }"
        )
    fpn = FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=max_pooled_level(shapes[in_features[-1]].stride),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    freeze_unread(fpn, read_features(cfg, fpn))
    return fpn


def require_freezable(cfg: CfgNode, num_parts: int = 5, parts: str = "stem and stages") -> None:
    """Raise a ConfigError if MODEL.BACKBONE.FREEZE_AT is above the number of parts."""
    frozen, allowed = cfg.MODEL.BACKBONE.FREEZE_AT, f"at most {num_parts}, the number of {parts}"
    require(frozen <= num_parts, "MODEL.BACKBONE.FREEZE_AT", frozen, allowed)


def require_timm(backbone: str) -> None:
    """Raise a ConfigError if the package timm is missing."""
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"The backbone {backbone} requires timm: pip install timm")


def max_pooled_level(stride: int) -> LastLevelMaxPool:
    """Return a max-pooled level on top of that of a stride (Detectron2 supports 32 only)."""
    top = LastLevelMaxPool()
    top.in_feature = f"p{int(math.log2(stride))}"
    return top


def read_features(cfg: CfgNode, pyramid: Backbone) -> set[str]:
    """Return the features of a pyramid that the model of a config uses.

    A max-pooled level uses the level below. Other models, and heads created by a function, are
    assumed to use all features.
    """
    produced, solo = list(pyramid.output_shape()), cfg.MODEL.SOLO
    known = solo.HEAD.NAME in SOLO_HEAD_REGISTRY  # checked elsewhere
    head = SOLO_HEAD_REGISTRY.get(solo.HEAD.NAME) if known else None
    if not is_solo(cfg) or not hasattr(head, "has_mask_feature"):
        return set(produced)
    read = {*solo.IN_FEATURES}
    if has_mask_feature(solo.HEAD.NAME) and solo.MASK_FEATURE.TYPE == "unified":
        read.update(solo.MASK_FEATURE.IN_FEATURES)
    if is_panoptic(cfg):
        read.update(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)
    if produced[-1] in read:
        read.add(produced[-2])
    return read


def freeze_unread(fpn: FPN, read: set[str]) -> None:
    """Freeze the convolutions of an FPN that no level in `read` depends on.

    An output convolution is used by its own level, a lateral one by all finer levels too.
    """
    used = False
    for level in list(fpn.output_shape())[: len(fpn.in_features)]:  # finest first
        used = used or level in read
        stage = level.removeprefix("p")
        if level not in read:
            getattr(fpn, f"fpn_output{stage}").requires_grad_(False)
        if not used:
            getattr(fpn, f"fpn_lateral{stage}").requires_grad_(False)
