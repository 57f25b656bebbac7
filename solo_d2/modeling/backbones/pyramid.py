"""The feature pyramid on a backbone, and which of its levels the model reads.

Parameters of levels that nobody reads never get a gradient, over which DistributedDataParallel
stumbles; they are frozen.
"""

import importlib.util
import math

from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from solo_d2.config.models import is_panoptic, is_solo
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, has_mask_feature
from solo_d2.utils.errors import ConfigError


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Put an FPN (arXiv:1612.03144) with one max-pooled level on top onto a backbone.

    Features are named by their stride, "p2" for 4 to "p6" for 64; how many there are depends on
    MODEL.FPN.IN_FEATURES. Levels that the model does not read are frozen.

    Args:
        cfg: MODEL.FPN is read, and what says which levels the model reads.
        bottom_up: the backbone.

    Raises:
        ConfigError: the backbone has no feature that MODEL.FPN.IN_FEATURES names.
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


def require_timm(backbone: str) -> None:
    """Raise a ConfigError if timm is missing, which has models and layers of transformers."""
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"The backbone {backbone} needs timm, which is missing: pip install timm")


def max_pooled_level(stride: int) -> LastLevelMaxPool:
    """One more level, by max-pooling the level of this stride (Detectron2 knows 32 alone)."""
    top = LastLevelMaxPool()
    top.in_feature = f"p{int(math.log2(stride))}"
    return top


def read_features(cfg: CfgNode, pyramid: Backbone) -> set[str]:
    """Return the features of a pyramid that the model of a config reads.

    A max-pooled level stands for the level that it is made from, too. Of other models, and of heads
    that a function makes, nothing is known: they read all.
    """
    produced, solo = list(pyramid.output_shape()), cfg.MODEL.SOLO
    known = solo.HEAD.NAME in SOLO_HEAD_REGISTRY  # else it is refused elsewhere
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

    An output convolution serves its own level, a lateral one also all finer levels.
    """
    used = False
    for level in list(fpn.output_shape())[: len(fpn.in_features)]:  # finest first
        used = used or level in read
        stage = level.removeprefix("p")
        if level not in read:
            getattr(fpn, f"fpn_output{stage}").requires_grad_(False)
        if not used:
            getattr(fpn, f"fpn_lateral{stage}").requires_grad_(False)
