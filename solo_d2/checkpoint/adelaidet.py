"""SOLOv2 of AdelaiDet: Detectron2's backbone; towers are lists of convolution, norm and ReLU."""

from solo_d2.checkpoint.renaming import BGR_INPUTS, Format
from solo_d2.checkpoint.zoo import OFFSETS

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
