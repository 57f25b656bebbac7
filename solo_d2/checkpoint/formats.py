"""All source formats: a key table each, and a place in `FORMATS`."""

from collections.abc import Mapping
from typing import Any

from solo_d2.checkpoint.renaming import BGR_INPUTS, RGB_INPUTS, Format, Names

# ---- This project and Detectron2, whose zoo has detectors and two kinds of ResNet

# Detectron2's own deformable blocks have the offsets next to the convolution.
OFFSETS = ((r"(backbone\.bottom_up\.res\d\.\d+\.conv2)_offset\.(.*)", "{1}.offset.{2}"),)

OWN = Format(
    title="a model of this project",
    marks=(r"head\.class_logits\.weight", r"backbone\..*"),
    names=(),  # the same since the first version
    ignored=(r"pixel_(mean|std)",),
    counters=True,
)

# A detector, such as Mask R-CNN, or a backbone that was converted by this project.
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
# Older files have no statistics: they are part of scale and bias.
_STATISTICS = (r".*\.norm\.running_(?:mean|var)",)

# The original ones (MSRA), with the names of Caffe2.
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
# ...) are no part of Detectron2's ResNet, and are refused as unknown names.


def resnet_names(prefix: str) -> Names:
    """The table for a ResNet of torchvision, timm or mmcv whose names start with a prefix.

    The offsets of deformable convolutions are inside `conv2`, and next to it in older files.
    """
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

# ---- mmdetection: the authors' repository (mmdetection 1) and mmdetection 2 and 3. All have mmcv's
# ResNet, FPN and convolution modules: `conv` with its norm beside it, called `gn` or `bn`, and the
# offsets of a deformable convolution inside it (in older files beside it). The class layers have no
# channel for the background, and class c is channel c, so nothing is shifted.

_BACKBONE: Names = (
    *resnet_names("backbone."),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", "backbone.fpn_lateral{1+2}.{2}"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.*)", "backbone.fpn_output{1+2}.{2}"),
)


def _conv_module(theirs: str, ours: str, groups: int) -> Names:
    """The table for a convolution module; `groups` is the number of groups in `theirs`."""
    following = f"{{{groups + 1}}}"
    return (
        (rf"{theirs}\.conv(?:\.conv)?_offset\.(.*)", f"{ours}.offset.{following}"),
        (rf"{theirs}\.conv\.(weight|bias)", f"{ours}.{following}"),
        (rf"{theirs}\.(?:gn|bn)\.(.*)", f"{ours}.norm.{following}"),
    )


def _towers(prefix: str, **ours: str) -> Names:
    """The table for towers, by their names; ours are below "head."."""
    return tuple(
        pair
        for theirs, name in ours.items()
        for pair in _conv_module(rf"{prefix}\.{theirs}\.(\d+)", f"head.{name}.{{1}}", 1)
    )


def _mask_feature(prefix: str, output: str) -> Names:
    """The table for SOLOv2's mask feature; `output` is the name of its last convolution."""
    level, ours = rf"{prefix}\.convs_all_levels\.(\d)\.conv(\d)", "head.mask_feature."
    return (
        *_conv_module(level, f"{ours}levels.{{1}}.{{2}}", 2),
        *_conv_module(rf"{prefix}\.{output}", f"{ours}output", 0),
    )


SOLO_AUTHORS = Format(
    title="the SOLO authors' code (mmdetection 1)",
    marks=(r"bbox_head\.d?solo_cate\.weight", r"backbone\.conv1\.weight"),
    names=(
        *_BACKBONE,
        *_towers(
            "bbox_head",
            cate_convs="class_tower",
            ins_convs="mask_tower",
            ins_convs_x="column_tower",
            ins_convs_y="row_tower",
            kernel_convs="kernel_tower",
        ),
        (r"bbox_head\.d?solo_cate\.(.*)", "head.class_logits.{1}"),
        (r"bbox_head\.solo_ins_list\.(.*)", "head.mask_logits.{1}"),
        (r"bbox_head\.dsolo_ins_list_x\.(.*)", "head.column_logits.{1}"),
        (r"bbox_head\.dsolo_ins_list_y\.(.*)", "head.row_logits.{1}"),
        (r"bbox_head\.solo_kernel\.(.*)", "head.kernel_params.{1}"),
        *_mask_feature("mask_feat_head", r"conv_pred\.0"),
    ),
    settings=RGB_INPUTS,
)

MMDETECTION = Format(
    title="SOLO of mmdetection 2 or 3",
    marks=(
        r"mask_head\.conv_cls\.weight",
        r"mask_head\.(conv_kernel|conv_mask_list\.0|conv_mask_list_x\.0)\.weight",
    ),
    names=(
        *_BACKBONE,
        *_towers(
            "mask_head",
            cls_convs="class_tower",
            mask_convs="mask_tower",
            mask_convs_x="column_tower",
            mask_convs_y="row_tower",
            kernel_convs="kernel_tower",
        ),
        (r"mask_head\.conv_cls\.(.*)", "head.class_logits.{1}"),
        (r"mask_head\.conv_mask_list\.(.*)", "head.mask_logits.{1}"),
        (r"mask_head\.conv_mask_list_x\.(.*)", "head.column_logits.{1}"),
        (r"mask_head\.conv_mask_list_y\.(.*)", "head.row_logits.{1}"),
        (r"mask_head\.conv_kernel\.(.*)", "head.kernel_params.{1}"),
        *_mask_feature(r"mask_head\.mask_feature_head", "conv_pred"),
    ),
    # mmdetection 3 saves its normalisation, which the config has.
    ignored=(r"data_preprocessor\..*",),
    settings=RGB_INPUTS,
)

# Another detector. Its pyramid may begin at another stage under the same names, so it stays out.
MMDETECTION_DETECTOR = Format(
    title="the backbone of a detector of mmdetection",
    marks=(r"backbone\.conv1\.weight", r"backbone\.layer1\.0\.conv1\.weight"),
    names=resnet_names("backbone."),
    ignored=(r"(?!backbone\.).*",),
    whole=False,
    settings=RGB_INPUTS,
)


# The first that matches is taken.
FORMATS = (
    *(OWN, ADELAIDET, SOLO_AUTHORS, MMDETECTION, DETECTOR, MMDETECTION_DETECTOR),
    *(TORCHVISION, RESNET, CAFFE2),
)


def recognise(state: Mapping[str, Any]) -> Format | None:
    """Return the format of a state dict, by its names; None if none fits."""
    return next((source for source in FORMATS if source.matches(state)), None)
