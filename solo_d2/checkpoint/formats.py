"""Formats of weights: a key table for each source, listed in `FORMATS`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

# Pairs of a regular expression for a full source name, and our name. In our name {1} is the first
# group, {1+2} its number plus 2, {1/3} its number divided by 3.
Names = tuple[tuple[str, str], ...]

# Counters of BatchNorm, which are only used in training with momentum None.
COUNTERS = r".*num_batches_tracked"

# ImageNet normalization for RGB images in [0, 255].
RGB_INPUTS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
# The same for BGR images: Detectron2's defaults.
BGR_INPUTS = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


class Conversion(NamedTuple):
    """Weights under our names."""

    state: dict[str, Tensor]  # names unknown to the format are unchanged
    origins: dict[str, str]  # source name of each
    ignored: tuple[str, ...]  # source names that were dropped


@dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        title: name in messages.
        marks: regular expressions; a file has this format if each matches one of its names.
        names: source names and ours; other names are kept.
        ignored: regular expressions of names to drop.
        whole: whether files contain whole models, not only backbones.
        settings: required values of config keys that weights do not show.
        absent: regular expressions of our names that the format lacks.
        counters: whether files contain the counters of BatchNorm under our names.
    """

    title: str
    marks: tuple[str, ...]
    names: Names
    ignored: tuple[str, ...] = ()
    whole: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    counters: bool = False

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """Rename the parameters; ValueError if two would get the same name."""
        converted: dict[str, Tensor] = {}
        origins: dict[str, str] = {}
        ignored = []
        without = self.ignored if self.counters else (*self.ignored, COUNTERS)
        for name, value in state.items():
            if any(re.fullmatch(pattern, name) for pattern in without):
                ignored.append(name)
                continue
            ours = self._rename(name)
            if ours in origins:
                raise ValueError(f"{origins[ours]} and {name} are both {ours}")
            converted[ours], origins[ours] = value, name
        return Conversion(converted, origins, tuple(ignored))

    def _rename(self, name: str) -> str:
        for theirs, ours in self.names:
            match = re.fullmatch(theirs, name)
            if match:
                return _expand(ours, match)
        return name


def _expand(template: str, match: re.Match[str]) -> str:
    def value(place: re.Match[str]) -> str:
        text = match[int(place[1])]
        if place[2] == "+":
            return str(int(text) + int(place[3]))
        return str(int(text) // int(place[3])) if place[2] == "/" else text

    return re.sub(r"\{(\d)(?:([+/])(\d))?\}", value, template)


# ---- This project and Detectron2, whose model zoo has detectors and two kinds of ResNet

# Detectron2's deformable blocks have the offsets next to the convolution.
OFFSETS = ((r"(backbone\.bottom_up\.res\d\.\d+\.conv2)_offset\.(.*)", "{1}.offset.{2}"),)

OWN = Format(
    title="a model of this project",
    marks=(r"head\.class_logits\.weight", r"backbone\..*"),
    names=(),  # the same since the first version
    ignored=(r"pixel_(mean|std)",),
    counters=True,
)

# A detector, such as Mask R-CNN, or a backbone converted by this project.
DETECTOR = Format(
    title="the backbone of a detector of Detectron2",
    marks=(r"backbone\.bottom_up\..*",),
    names=OFFSETS,
    ignored=(r"(?!backbone\.).*",),
    whole=False,
)

# As Detectron2 converts those of torchvision.
RESNET = Format(
    title="a ResNet of Detectron2",
    marks=(r"stem\.conv1\.weight", r"res2\.0\.conv1\.weight"),
    names=((r"(stem|res\d)\.(.*)", "backbone.bottom_up.{1}.{2}"),),
    ignored=(r"(?:stem\.)?(?:fc|linear)\..*",),
    whole=False,
)

_BRANCHES = (("1", "shortcut"), ("2a", "conv1"), ("2b", "conv2"), ("2c", "conv3"))
_CONVS = (
    ("conv1", "res_conv1", "stem.conv1"),
    *((rf"res(\d)_(\d+)_branch{a}",) * 2 + (f"res{{1}}.{{2}}.{b}",) for a, b in _BRANCHES),
)
# Older files have no statistics: they are folded into scale and bias.
_STATISTICS = (r".*\.norm\.running_(?:mean|var)",)

# The original weights (MSRA), with the names of Caffe2.
CAFFE2 = Format(
    title="a ResNet of Caffe2",
    marks=("conv1_w", "res2_0_branch2a_w"),
    names=tuple(
        (theirs, f"backbone.bottom_up.{ours}")
        for conv, norm, name in _CONVS
        for theirs, ours in (
            (rf"{conv}_w", f"{name}.weight"),
            (rf"{norm}_[bg]n_(?:s|gamma)", f"{name}.norm.weight"),
            (rf"{norm}_[bg]n_(?:b|bias|beta)", f"{name}.norm.bias"),
            (rf"{norm}_bn_(?:rm|running_mean)", f"{name}.norm.running_mean"),
            (rf"{norm}_bn_(?:riv|running_var)", f"{name}.norm.running_var"),
        )
    ),
    ignored=("conv1_b", "(?:fc1000|pred|last_out)_[wb].*", ".*_momentum", "lr", "model_iter"),
    whole=False,
    absent=_STATISTICS,
)

# ---- AdelaiDet: Detectron2's backbone; towers are lists of convolution, norm and ReLU

_CONV, _NORM = "(0|3|6|9|12|15|18|21)", "(1|4|7|10|13|16|19|22)"
_LEVELS = r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\."

ADELAIDET = Format(
    title="SOLOv2 of AdelaiDet",
    marks=(r"ins_head\.cate_pred\.weight",),
    names=(
        *OFFSETS,
        (rf"ins_head\.cate_tower\.{_CONV}\.weight", "head.class_tower.{1/3}.weight"),
        (rf"ins_head\.cate_tower\.{_NORM}\.(.*)", "head.class_tower.{1/3}.norm.{2}"),
        (rf"ins_head\.kernel_tower\.{_CONV}\.weight", "head.kernel_tower.{1/3}.weight"),
        (rf"ins_head\.kernel_tower\.{_NORM}\.(.*)", "head.kernel_tower.{1/3}.norm.{2}"),
        (r"ins_head\.cate_pred\.(.*)", "head.class_logits.{1}"),
        (r"ins_head\.kernel_pred\.(.*)", "head.kernel_params.{1}"),
        (rf"{_LEVELS}0\.weight", "head.mask_feature.levels.{1}.{2}.weight"),
        (rf"{_LEVELS}1\.(.*)", "head.mask_feature.levels.{1}.{2}.norm.{3}"),
        (r"mask_head\.conv_pred\.0\.weight", "head.mask_feature.output.weight"),
        (r"mask_head\.conv_pred\.1\.(.*)", "head.mask_feature.output.norm.{1}"),
    ),
    ignored=(r"pixel_(mean|std)",),
    settings=BGR_INPUTS,
)

# ---- torchvision and timm (ImageNet). Deeper stems and other additions of timm (ResNets "d", "se",
# ...) do not exist in Detectron2's ResNet, and are rejected as unknown names.


def resnet_names(prefix: str) -> Names:
    """Return the table for a ResNet of torchvision, timm or mmcv with a prefix of its names."""
    # The offsets of deformable convolutions are inside `conv2`, in older files next to it.
    theirs, ours = prefix.replace(".", r"\."), "backbone.bottom_up."
    block = rf"{theirs}layer(\d)\.(\d+)\."
    return (
        (rf"{theirs}conv1\.weight", f"{ours}stem.conv1.weight"),
        (rf"{theirs}bn1\.(.*)", f"{ours}stem.conv1.norm.{{1}}"),
        (rf"{block}conv(\d)\.weight", f"{ours}res{{1+1}}.{{2}}.conv{{3}}.weight"),
        (rf"{block}conv2(?:\.conv)?_offset\.(.*)", f"{ours}res{{1+1}}.{{2}}.conv2.offset.{{3}}"),
        (rf"{block}bn(\d)\.(.*)", f"{ours}res{{1+1}}.{{2}}.conv{{3}}.norm.{{4}}"),
        (rf"{block}downsample\.0\.weight", f"{ours}res{{1+1}}.{{2}}.shortcut.weight"),
        (rf"{block}downsample\.1\.(.*)", f"{ours}res{{1+1}}.{{2}}.shortcut.norm.{{3}}"),
    )


TORCHVISION = Format(
    title="a ResNet of torchvision or timm",
    marks=(r"conv1\.weight", r"bn1\.running_mean", r"layer1\.0\.conv1\.weight"),
    names=resnet_names(""),
    ignored=(r"fc\..*",),
    whole=False,
    settings=RGB_INPUTS,
)

# ---- mmdetection: the authors' repository (mmdetection 1) and mmdetection 2 and 3. All use mmcv's
# ResNet, FPN and convolution modules: `conv` with its norm beside it, called `gn` or `bn`, and the
# offsets of a deformable convolution inside it (in older files beside it). Class layers have no
# background channel, and channel c is class c, as in our models.

_BACKBONE: Names = (
    *resnet_names("backbone."),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", "backbone.fpn_lateral{1+2}.{2}"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.*)", "backbone.fpn_output{1+2}.{2}"),
)


def _conv_module(theirs: str, ours: str, groups: int) -> Names:
    """Return the table for a convolution module; `groups` is the number of groups in `theirs`."""
    following = f"{{{groups + 1}}}"
    return (
        (rf"{theirs}\.conv(?:\.conv)?_offset\.(.*)", f"{ours}.offset.{following}"),
        (rf"{theirs}\.conv\.(weight|bias)", f"{ours}.{following}"),
        (rf"{theirs}\.(?:gn|bn)\.(.*)", f"{ours}.norm.{following}"),
    )


def _model_names(
    head: str, towers: Sequence[str], layers: Sequence[str], feature: str, output: str
) -> Names:
    """Return the table for a model, given its names of `_TOWERS`, `_LAYERS` and mask feature."""
    level = rf"{feature}\.convs_all_levels\.(\d)\.conv(\d)"
    return (
        *_BACKBONE,
        *(
            pair
            for theirs, ours in zip(towers, _TOWERS, strict=True)
            for pair in _conv_module(rf"{head}\.{theirs}\.(\d+)", f"head.{ours}.{{1}}", 1)
        ),
        *(
            (rf"{head}\.{theirs}\.(.*)", f"head.{ours}.{{1}}")
            for theirs, ours in zip(layers, _LAYERS, strict=True)
        ),
        *_conv_module(level, "head.mask_feature.levels.{1}.{2}", 2),
        *_conv_module(rf"{feature}\.{output}", "head.mask_feature.output", 0),
    )


_TOWERS = ("class_tower", "mask_tower", "column_tower", "row_tower", "kernel_tower")
_LAYERS = ("class_logits", "mask_logits", "column_logits", "row_logits", "kernel_params")

SOLO_AUTHORS = Format(
    title="the SOLO authors' code (mmdetection 1)",
    marks=(r"bbox_head\.d?solo_cate\.weight", r"backbone\.conv1\.weight"),
    names=_model_names(
        "bbox_head",
        ("cate_convs", "ins_convs", "ins_convs_x", "ins_convs_y", "kernel_convs"),
        ("d?solo_cate", "solo_ins_list", "dsolo_ins_list_x", "dsolo_ins_list_y", "solo_kernel"),
        "mask_feat_head",
        r"conv_pred\.0",
    ),
    settings=RGB_INPUTS,
)

MMDETECTION = Format(
    title="SOLO of mmdetection 2 or 3",
    marks=(
        r"mask_head\.conv_cls\.weight",
        r"mask_head\.(conv_kernel|conv_mask_list\.0|conv_mask_list_x\.0)\.weight",
    ),
    names=_model_names(
        "mask_head",
        ("cls_convs", "mask_convs", "mask_convs_x", "mask_convs_y", "kernel_convs"),
        ("conv_cls", "conv_mask_list", "conv_mask_list_x", "conv_mask_list_y", "conv_kernel"),
        r"mask_head\.mask_feature_head",
        "conv_pred",
    ),
    # mmdetection 3 saves its normalization, which is in the config here.
    ignored=(r"data_preprocessor\..*",),
    settings=RGB_INPUTS,
)

# Another detector. Its pyramid is dropped, since it may start at another stage with equal names.
MMDETECTION_DETECTOR = Format(
    title="the backbone of a detector of mmdetection",
    marks=(r"backbone\.conv1\.weight", r"backbone\.layer1\.0\.conv1\.weight"),
    names=resnet_names("backbone."),
    ignored=(r"(?!backbone\.).*",),
    whole=False,
    settings=RGB_INPUTS,
)


# The first match is used.
FORMATS = (
    *(OWN, ADELAIDET, SOLO_AUTHORS, MMDETECTION, DETECTOR, MMDETECTION_DETECTOR),
    *(TORCHVISION, RESNET, CAFFE2),
)


def recognise(state: Mapping[str, Any]) -> Format | None:
    """Return the format of a state dict, by its names; None if unknown."""
    for source in FORMATS:
        if all(any(re.fullmatch(mark, name) for name in state) for mark in source.marks):
            return source
    return None
