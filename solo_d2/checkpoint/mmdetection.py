"""SOLO in mmdetection: the authors' repository (mmdetection 1) and mmdetection 2 and 3.

All have mmcv's ResNet, FPN and convolution modules: `conv` with its norm beside it, called `gn` or
`bn`, and the offsets of a deformable convolution inside it (in older files beside it). The class
layers have no channel for the background, and class c is channel c, so nothing is shifted.
"""

from solo_d2.checkpoint.renaming import RGB_INPUTS, Format, Names
from solo_d2.checkpoint.torchvision import resnet_names

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
