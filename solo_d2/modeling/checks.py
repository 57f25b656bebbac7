"""Refuses configs that cannot work when the model is built, naming the key."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from solo_d2.errors import ConfigError
from solo_d2.inference import NMS
from solo_d2.losses import MASK_LOSSES
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY
from solo_d2.modeling.heads.base import ALIGNMENTS
from solo_d2.modeling.heads.solov2 import MASK_FEATURE_TYPES
from solo_d2.modeling.layers import DEFORMS
from solo_d2.ops.backends import BACKENDS
from solo_d2.targets import CELL_CONFLICTS, MASK_TARGETS

GROUP_NORM_GROUPS = 32


def check_model_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Raise a ConfigError for the first combination of keys that cannot work.

    Args:
        cfg: the config.
        shapes: channels and stride of the backbone's features.
    """
    solo = cfg.MODEL.SOLO
    _require(
        solo.NUM_CLASSES > 0,
        "NUM_CLASSES",
        solo.NUM_CLASSES,
        "a positive number; 0 is filled in from the data set by train_net.py and the demo",
    )
    _check_choices(solo)
    _check_levels(solo, shapes)
    _check_towers(solo)
    if SOLO_HEAD_REGISTRY.get(solo.HEAD.NAME).has_mask_feature:
        _check_mask_feature(solo, shapes)
    else:
        even = all(stride % 2 == 0 for stride in solo.STRIDES)
        _require(even, "STRIDES", solo.STRIDES, "even: masks are made at half of them")
    for key in ("SCORE_THRESH_TEST", "MASK_THRESH_TEST", "KEEP_THRESH_TEST"):
        _require(0 <= solo[key] <= 1, key, solo[key], "a probability in [0, 1]")
    for key, value in (
        ("PRE_NMS_TOPK", solo.PRE_NMS_TOPK),
        ("LOSS.MEMORY_MIB", solo.LOSS.MEMORY_MIB),
    ):
        _require(value > 0, key, value, "a positive number")


def check_panoptic_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Raise a ConfigError for the first key of the semantic branch that cannot work.

    Args:
        cfg: the config, which `check_model_config` has accepted.
        shapes: channels and stride of the backbone's features.
    """
    semantic, combine = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PANOPTIC_FPN.COMBINE
    number, ignored = semantic.NUM_CLASSES, semantic.IGNORE_VALUE
    allowed = (
        "at least 2, the stuff classes and one for all things; 0 is filled in from the data set by "
        "train_net.py and the demo"
    )
    _require(number >= 2, "SEM_SEG_HEAD.NUM_CLASSES", number, allowed, "MODEL")
    target = cfg.MODEL.SOLO.MASK_TARGET
    _require(target == "mask", "MASK_TARGET", target, "'mask' for a panoptic model")
    allowed = f"no label, below 0 or from NUM_CLASSES ({number}) on"
    _require(not 0 <= ignored < number, "SEM_SEG_HEAD.IGNORE_VALUE", ignored, allowed, "MODEL")
    if semantic.SHARE_MASK_FEATURE:
        solo = cfg.MODEL.SOLO
        has_feature = SOLO_HEAD_REGISTRY.get(solo.HEAD.NAME).has_mask_feature
        _require(
            has_feature and solo.MASK_FEATURE.TYPE == "unified",
            "SEM_SEG_HEAD.SHARE_MASK_FEATURE",
            True,
            f"False with {solo.HEAD.NAME} and MASK_FEATURE.TYPE {solo.MASK_FEATURE.TYPE!r}: "
            "only a unified mask feature can be shared",
            "MODEL",
        )
    else:
        _check_pyramid("SEM_SEG_HEAD.IN_FEATURES", semantic.IN_FEATURES, shapes, "MODEL")
        width = semantic.CONVS_DIM
        _check_width("SEM_SEG_HEAD.CONVS_DIM", width, semantic.NORM, "SEM_SEG_HEAD.NORM", "MODEL")
    for key, holds, allowed in (
        # At 1, and at 0, there would be segments without a pixel.
        ("OVERLAP_THRESH", 0 <= combine.OVERLAP_THRESH < 1, "in [0, 1)"),
        ("STUFF_AREA_LIMIT", combine.STUFF_AREA_LIMIT >= 1, "at least 1 pixel"),
    ):
        _require(holds, f"PANOPTIC_FPN.COMBINE.{key}", combine[key], allowed, "MODEL")


def _check_levels(solo: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    for name in solo.IN_FEATURES:
        _require(name in shapes, "IN_FEATURES", name, f"features of the backbone: {list(shapes)}")
    levels = len(solo.IN_FEATURES)
    for key in ("STRIDES", "NUM_GRIDS", "SCALE_RANGES"):
        allowed = f"{levels} values, one for each of IN_FEATURES {solo.IN_FEATURES}"
        _require(len(solo[key]) == levels, key, solo[key], allowed)
    for key in ("STRIDES", "NUM_GRIDS"):
        _require(all(x > 0 for x in solo[key]), key, solo[key], "positive numbers")
    for scale_range in solo.SCALE_RANGES:
        _require(
            len(scale_range) == 2 and 0 <= scale_range[0] <= scale_range[1],
            "SCALE_RANGES",
            scale_range,
            "pairs [least, largest] in pixels",
        )
    channels = {name: shapes[name].channels for name in solo.IN_FEATURES}
    _require(len(set(channels.values())) == 1, "IN_FEATURES", channels, "features of one width")


def _check_towers(solo: CfgNode) -> None:
    head = solo.HEAD
    _require(head.NUM_CONVS > 0, "HEAD.NUM_CONVS", head.NUM_CONVS, "a positive number")
    for key in ("NUM_COORD_CONVS", "NUM_DEFORM_CONVS"):
        allowed = f"a number from 0 to HEAD.NUM_CONVS ({head.NUM_CONVS})"
        _require(0 <= head[key] <= head.NUM_CONVS, f"HEAD.{key}", head[key], allowed)
    _check_width("HEAD.CONV_DIM", head.CONV_DIM, head.NORM)


def _check_mask_feature(solo: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    mask_feature = solo.MASK_FEATURE
    for key in ("CONV_DIM", "OUT_CHANNELS"):
        _check_width(f"MASK_FEATURE.{key}", mask_feature[key], solo.HEAD.NORM)
    if mask_feature.TYPE == "separate":
        number = mask_feature.NUM_CONVS
        _require(number > 0, "MASK_FEATURE.NUM_CONVS", number, "a positive number")
        return
    _check_pyramid("MASK_FEATURE.IN_FEATURES", mask_feature.IN_FEATURES, shapes)


def _check_pyramid(
    key: str, names: Sequence[str], shapes: Mapping[str, ShapeSpec], section: str = "MODEL.SOLO"
) -> None:
    for name in names:
        _require(name in shapes, key, name, f"features of the backbone: {list(shapes)}", section)
    strides = [shapes[name].stride for name in names]
    doubling = all(stride == strides[0] << level for level, stride in enumerate(strides))
    allowed = "features from fine to coarse, the stride doubling from each to the next"
    _require(bool(strides) and doubling, key, strides, allowed, section)


def _check_width(
    key: str,
    width: int,
    norm: str,
    norm_key: str = "HEAD.NORM",
    section: str = "MODEL.SOLO",
) -> None:
    groups = GROUP_NORM_GROUPS if norm == "GN" else 1
    allowed = f"a positive multiple of {groups}"
    if groups > 1:
        allowed += f", the groups of GroupNorm ({norm_key} GN)"
    _require(width > 0 and width % groups == 0, key, width, allowed, section)


def _check_choices(solo: CfgNode) -> None:
    for key, value, choices in (
        ("HEAD.NAME", solo.HEAD.NAME, tuple(sorted(key for key, _ in SOLO_HEAD_REGISTRY))),
        ("HEAD.ALIGN", solo.HEAD.ALIGN, tuple(ALIGNMENTS)),
        ("HEAD.DEFORM", solo.HEAD.DEFORM, DEFORMS),
        ("MASK_FEATURE.TYPE", solo.MASK_FEATURE.TYPE, MASK_FEATURE_TYPES),
        ("MASK_FEATURE.DEFORM", solo.MASK_FEATURE.DEFORM, DEFORMS),
        ("LOSS.MASK_TYPE", solo.LOSS.MASK_TYPE, tuple(MASK_LOSSES)),
        ("CELL_CONFLICT", solo.CELL_CONFLICT, CELL_CONFLICTS),
        ("MASK_TARGET", solo.MASK_TARGET, MASK_TARGETS),
        ("MASK_BACKEND", solo.MASK_BACKEND, BACKENDS),
        ("NMS.TYPE", solo.NMS.TYPE, tuple(NMS)),
        ("NMS.KERNEL", solo.NMS.KERNEL, ("gaussian", "linear")),
        ("NMS.BACKEND", solo.NMS.BACKEND, BACKENDS),
        ("HEAD.KERNEL_SIZE", solo.HEAD.KERNEL_SIZE, (1, 3)),
    ):
        _require(value in choices, key, value, f"one of {choices}")


def _require(holds: bool, key: str, value: Any, allowed: str, section: str = "MODEL.SOLO") -> None:
    if not holds:
        raise ConfigError(f"{section}.{key} is {value!r}, but must be {allowed}")
