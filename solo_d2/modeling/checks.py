"""Refuses configs that cannot work when the model is built, naming the key."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from solo_d2.errors import ConfigError
from solo_d2.inference import NMS
from solo_d2.ops.backends import BACKENDS
from solo_d2.targets import CELL_CONFLICTS

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
    _check_levels(solo, shapes)
    _check_mask_feature(solo, shapes)
    _check_choices(solo)
    for key in ("SCORE_THRESH_TEST", "MASK_THRESH_TEST", "KEEP_THRESH_TEST"):
        _require(0 <= solo[key] <= 1, key, solo[key], "a probability in [0, 1]")
    _require(solo.PRE_NMS_TOPK > 0, "PRE_NMS_TOPK", solo.PRE_NMS_TOPK, "a positive number")


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


def _check_mask_feature(solo: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    for name in solo.MASK_FEATURE.IN_FEATURES:
        allowed = f"features of the backbone: {list(shapes)}"
        _require(name in shapes, "MASK_FEATURE.IN_FEATURES", name, allowed)
    strides = [shapes[name].stride for name in solo.MASK_FEATURE.IN_FEATURES]
    doubling = all(stride == strides[0] << level for level, stride in enumerate(strides))
    allowed = "features from fine to coarse, the stride doubling from each to the next"
    _require(bool(strides) and doubling, "MASK_FEATURE.IN_FEATURES", strides, allowed)
    if solo.HEAD.NORM == "GN":
        widths = {
            "HEAD.CONV_DIM": solo.HEAD.CONV_DIM,
            "MASK_FEATURE.CONV_DIM": solo.MASK_FEATURE.CONV_DIM,
            "MASK_FEATURE.OUT_CHANNELS": solo.MASK_FEATURE.OUT_CHANNELS,
        }
        for key, width in widths.items():
            allowed = f"a multiple of {GROUP_NORM_GROUPS}, the groups of GroupNorm (HEAD.NORM GN)"
            _require(width > 0 and width % GROUP_NORM_GROUPS == 0, key, width, allowed)


def _check_choices(solo: CfgNode) -> None:
    for key, value, choices in (
        ("CELL_CONFLICT", solo.CELL_CONFLICT, CELL_CONFLICTS),
        ("MASK_BACKEND", solo.MASK_BACKEND, BACKENDS),
        ("NMS.TYPE", solo.NMS.TYPE, tuple(NMS)),
        ("NMS.KERNEL", solo.NMS.KERNEL, ("gaussian", "linear")),
        ("NMS.BACKEND", solo.NMS.BACKEND, BACKENDS),
        ("HEAD.KERNEL_SIZE", solo.HEAD.KERNEL_SIZE, (1, 3)),
    ):
        _require(value in choices, key, value, f"one of {choices}")


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"MODEL.SOLO.{key} is {value!r}, but must be {allowed}")
