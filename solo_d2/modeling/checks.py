"""Checks of the model's config keys; errors name key, value and allowed values.

Tables contain the ranges and choices of single keys, functions check combinations. Requirements of
Detectron2's own code are left to it; its errors become a ConfigError (`solo_d2.modeling.building`).
"""

import math
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from solo_d2.config.check import check_config
from solo_d2.config.rules import (
    PROBABILITY,
    Rule,
    above,
    at_least,
    between,
    each,
    one_of,
    require,
)
from solo_d2.inference import NMS
from solo_d2.losses import MASK_LOSSES
from solo_d2.modeling.backbones.timm import NORMS as TIMM_NORMS
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, LevelMasksHead, has_mask_feature
from solo_d2.modeling.heads.base import ALIGNMENTS
from solo_d2.modeling.heads.solov2 import MASK_FEATURE_TYPES
from solo_d2.modeling.layers import DEFORMS, GROUP_NORM_GROUPS
from solo_d2.ops.backends import BACKENDS
from solo_d2.targets import CELL_CONFLICTS, MASK_TARGETS

# Norms of Detectron2; "" is none.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

SECTIONS = (
    *("MODEL.SOLO", "MODEL.BACKBONE", "MODEL.FPN", "MODEL.RESNETS"),
    *("MODEL.SWIN", "MODEL.VIT", "MODEL.REGNET", "MODEL.TIMM"),
    *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
    *("TEST.DETECTIONS_PER_IMAGE", "VIS_PERIOD"),
)
PANOPTIC_SECTIONS = ("MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN")


def _all(rule: Rule, section: str, *names: str) -> dict[str, Rule]:
    """Return the same rule for several keys of a section."""
    return {f"{section}.{name}": rule for name in names}


RULES = {
    "MODEL.PIXEL_MEAN": each(Rule(math.isfinite, "finite"), length=3),
    "MODEL.PIXEL_STD": each(above(0), length=3),
    "INPUT.FORMAT": one_of(("BGR", "RGB")),
    "VIS_PERIOD": at_least(0),
    "TEST.DETECTIONS_PER_IMAGE": at_least(1),
    "MODEL.BACKBONE.FREEZE_AT": at_least(0),
    "MODEL.RESNETS.DEPTH": one_of((18, 34, 50, 101, 152)),
    **_all(at_least(1), "MODEL.RESNETS", "NUM_GROUPS", "WIDTH_PER_GROUP"),
    **_all(at_least(1), "MODEL.RESNETS", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"),
    "MODEL.FPN.OUT_CHANNELS": at_least(1),
    "MODEL.FPN.FUSE_TYPE": one_of(("sum", "avg")),
    "MODEL.RESNETS.NORM": one_of((*NORMS, "EvalBN")),
    **_all(one_of(NORMS), "MODEL", "FPN.NORM", "REGNET.NORM", "SOLO.HEAD.NORM"),
    **_all(each(at_least(1)), "MODEL.SWIN", "DEPTHS", "NUM_HEADS"),
    **_all(between(0, 0.99), "MODEL", *(f"{x}.DROP_PATH_RATE" for x in ("SWIN", "VIT", "TIMM"))),
    **_all(at_least(1), "MODEL", "VIT.DEPTH", "VIT.NUM_HEADS", "REGNET.DEPTH"),
    "MODEL.VIT.WINDOW_SIZE": at_least(0),
    "MODEL.VIT.IMAGE_SIZE": at_least(16, " pixels"),
    **_all(above(0, 1), "MODEL", "VIT.LR_DECAY", "TIMM.LR_DECAY"),
    "MODEL.TIMM.NORM": one_of(TIMM_NORMS),
    "MODEL.SOLO.NUM_CLASSES": Rule(
        lambda number: number > 0,
        "a positive number; train_net.py and the demo replace 0 by that of the data set",
    ),
    **_all(each(at_least(1)), "MODEL.SOLO", "STRIDES", "NUM_GRIDS"),
    "MODEL.SOLO.CENTER_SCALE": at_least(0),
    "MODEL.SOLO.CELL_CONFLICT": one_of(CELL_CONFLICTS),
    "MODEL.SOLO.MASK_TARGET": one_of(MASK_TARGETS),
    **_all(at_least(1), "MODEL.SOLO", "HEAD.NUM_CONVS", "MASK_FEATURE.NUM_CONVS"),
    "MODEL.SOLO.HEAD.PRIOR_PROB": Rule(lambda prob: 0 < prob < 1, "in (0, 1)"),
    "MODEL.SOLO.HEAD.ALIGN": one_of(ALIGNMENTS),
    "MODEL.SOLO.HEAD.KERNEL_SIZE": one_of((1, 3)),
    "MODEL.SOLO.MASK_FEATURE.TYPE": one_of(MASK_FEATURE_TYPES),
    **_all(one_of(DEFORMS), "MODEL.SOLO", "HEAD.DEFORM", "MASK_FEATURE.DEFORM"),
    **_all(at_least(0), "MODEL.SOLO.LOSS", "CLS_WEIGHT", "MASK_WEIGHT", "MASK_POS_WEIGHT"),
    "MODEL.SOLO.LOSS.FOCAL_ALPHA": between(0, 1),
    "MODEL.SOLO.LOSS.FOCAL_GAMMA": at_least(0),
    "MODEL.SOLO.LOSS.MEMORY_MIB": at_least(0),
    "MODEL.SOLO.PRE_NMS_TOPK": at_least(1),
    "MODEL.SOLO.LANES": at_least(0),
    **_all(PROBABILITY, "MODEL.SOLO", "SCORE_THRESH_TEST", "MASK_THRESH_TEST", "KEEP_THRESH_TEST"),
    "MODEL.SOLO.NMS.KERNEL": one_of(("gaussian", "linear")),
    "MODEL.SOLO.NMS.SIGMA": at_least(0),
    "MODEL.SOLO.NMS.THRESH": between(0, 1),
    **_all(one_of(BACKENDS), "MODEL.SOLO", "MASK_BACKEND", "NMS.BACKEND"),
}
PANOPTIC_RULES = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": Rule(
        lambda number: number >= 2,
        "at least 2, the stuff classes and one for all things; train_net.py and the demo replace 0 "
        "by that of the data set",
    ),
    "MODEL.SEM_SEG_HEAD.NORM": one_of(NORMS),
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": at_least(0),
    # Values of 1 here, and 0 below, would give empty segments.
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": Rule(lambda x: 0 <= x < 1, "in [0, 1)"),
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": at_least(1, " pixel"),
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": PROBABILITY,
}


def check_model_keys(cfg: CfgNode) -> None:
    """Raise a ConfigError for the first key with an invalid value."""
    registered = {
        "MODEL.BACKBONE.NAME": one_of(sorted(name for name, _ in BACKBONE_REGISTRY)),
        "MODEL.SOLO.HEAD.NAME": one_of(sorted(name for name, _ in SOLO_HEAD_REGISTRY)),
        "MODEL.SOLO.NMS.TYPE": one_of(NMS),
        "MODEL.SOLO.LOSS.MASK_TYPE": one_of(MASK_LOSSES),
    }
    check_config(cfg, SECTIONS, {**RULES, **registered})


def check_model_config(cfg: CfgNode, backbone: Backbone) -> None:
    """Raise a ConfigError for the first invalid combination of keys.

    Args:
        cfg: the config, already checked by `check_model_keys`.
        backbone: the backbone of the config.
    """
    solo, shapes = cfg.MODEL.SOLO, backbone.output_shape()
    _check_levels(solo, shapes)
    # Features must not be empty, and the cells of a level must cover the same pixels.
    divisor, strides = backbone.size_divisibility, solo.STRIDES
    divides = divisor > 0 and all(divisor % stride == 0 for stride in strides)
    allowed = f"divisors of {divisor}: the backbone pads images to multiples of it"
    require(divides, "MODEL.SOLO.STRIDES", strides, allowed)
    _check_head(solo.HEAD)
    head = SOLO_HEAD_REGISTRY.get(solo.HEAD.NAME)
    if has_mask_feature(solo.HEAD.NAME):
        _check_mask_feature(solo, shapes)
    elif isinstance(head, type) and issubclass(head, LevelMasksHead):
        even = all(stride % 2 == 0 for stride in strides)
        require(even, "MODEL.SOLO.STRIDES", strides, "even: masks are made at half of them")


def check_panoptic_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Raise a ConfigError for the first invalid key of the semantic branch.

    Args:
        cfg: the config, already checked by `check_model_config`.
        shapes: channels and stride of the backbone's features.
    """
    check_config(cfg, PANOPTIC_SECTIONS, PANOPTIC_RULES)
    semantic, solo, section = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.SOLO, "MODEL.SEM_SEG_HEAD"
    number, ignored, target = semantic.NUM_CLASSES, semantic.IGNORE_VALUE, solo.MASK_TARGET
    require(target == "mask", "MODEL.SOLO.MASK_TARGET", target, "'mask' for a panoptic model")
    # Stuff maps have 8 bits; with a negative value all pixels are labeled.
    allowed = f"no label: below 0, or from NUM_CLASSES ({number}) to 255"
    holds = ignored < 0 or number <= ignored <= 255
    require(holds, f"{section}.IGNORE_VALUE", ignored, allowed)
    if not semantic.SHARE_MASK_FEATURE:
        _check_pyramid(f"{section}.IN_FEATURES", semantic.IN_FEATURES, shapes)
        _check_width(f"{section}.CONVS_DIM", semantic.CONVS_DIM, f"{section}.NORM", semantic.NORM)
        return
    require(
        has_mask_feature(solo.HEAD.NAME) and solo.MASK_FEATURE.TYPE == "unified",
        f"{section}.SHARE_MASK_FEATURE",
        True,
        f"False with {solo.HEAD.NAME} and MASK_FEATURE.TYPE {solo.MASK_FEATURE.TYPE!r}: "
        "only a unified mask feature can be shared",
    )


def _check_levels(solo: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    names, levels = solo.IN_FEATURES, len(solo.IN_FEATURES)
    _check_known("MODEL.SOLO.IN_FEATURES", names, shapes)
    for key in ("STRIDES", "NUM_GRIDS", "SCALE_RANGES"):
        allowed = f"{levels} values, one for each of IN_FEATURES {names}"
        require(len(solo[key]) == levels, f"MODEL.SOLO.{key}", solo[key], allowed)
    for pair in solo.SCALE_RANGES:
        ordered = len(pair) == 2 and 0 <= pair[0] <= pair[1]
        require(ordered, "MODEL.SOLO.SCALE_RANGES", pair, "pairs [minimum, maximum] in pixels")
    channels = {name: shapes[name].channels for name in names}
    one_width = len(set(channels.values())) == 1
    require(one_width, "MODEL.SOLO.IN_FEATURES", channels, "features with equal channels")


def _check_head(head: CfgNode) -> None:
    for key in ("NUM_COORD_CONVS", "NUM_DEFORM_CONVS"):
        allowed = f"a number from 0 to HEAD.NUM_CONVS ({head.NUM_CONVS})"
        require(0 <= head[key] <= head.NUM_CONVS, f"MODEL.SOLO.HEAD.{key}", head[key], allowed)
    _check_width("MODEL.SOLO.HEAD.CONV_DIM", head.CONV_DIM, "MODEL.SOLO.HEAD.NORM", head.NORM)


def _check_mask_feature(solo: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    mask_feature, section = solo.MASK_FEATURE, "MODEL.SOLO.MASK_FEATURE"
    for key in ("CONV_DIM", "OUT_CHANNELS"):
        _check_width(f"{section}.{key}", mask_feature[key], "MODEL.SOLO.HEAD.NORM", solo.HEAD.NORM)
    if mask_feature.TYPE == "unified":
        _check_pyramid(f"{section}.IN_FEATURES", mask_feature.IN_FEATURES, shapes)


def _check_known(key: str, names: Sequence[str], shapes: Mapping[str, ShapeSpec]) -> None:
    known = bool(names) and set(names) <= set(shapes)
    require(known, key, names, f"features of the backbone: {list(shapes)}")


def _check_pyramid(key: str, names: Sequence[str], shapes: Mapping[str, ShapeSpec]) -> None:
    _check_known(key, names, shapes)
    strides = [shapes[name].stride for name in names]
    doubling = all(stride == strides[0] << level for level, stride in enumerate(strides))
    allowed = "features from fine to coarse, each with twice the stride of the one before"
    require(doubling, key, strides, allowed)


def _check_width(key: str, width: int, norm_key: str, norm: str) -> None:
    groups = GROUP_NORM_GROUPS if norm == "GN" else 1
    reason = f", the groups of GroupNorm ({norm_key} GN)" if norm == "GN" else ""
    allowed = f"a positive multiple of {groups}{reason}"
    require(width > 0 and width % groups == 0, key, width, allowed)
