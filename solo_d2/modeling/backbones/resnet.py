"""ResNet-FPN with optional deformable stages, for training and inference on any device.

Detectron2's deformable stages require its compiled operator, whose modulated version does not run
on the CPU, and support bottleneck blocks only.
"""

from typing import cast

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet, build_resnet_backbone
from torch import nn

from solo_d2.config.rules import require
from solo_d2.modeling.backbones.pyramid import build_fpn, require_freezable
from solo_d2.modeling.layers import DeformConv2d

STAGES = ("res2", "res3", "res4", "res5")


class EvalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its running statistics; scale and shift are trained.

    The authors' models were trained in this way (mmdetection's `norm_eval`), so that small batches
    do not disturb the statistics of pretraining.
    """

    def train(self, mode: bool = True) -> "EvalBatchNorm2d":
        """Stay in eval mode."""
        return super().train(False)


@BACKBONE_REGISTRY.register()
def build_solo_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's ResNet-FPN of any depth, with `DeformConv2d` in deformable stages.

    In deformable stages (MODEL.RESNETS.DEFORM_ON_PER_STAGE, res2 to res5) the second convolution of
    each block is deformable, plain (v1) or modulated (v2, DEFORM_MODULATED). Parameters keep their
    names; `resN.i.conv2.offset` is new. MODEL.RESNETS.NORM may be "EvalBN" (`EvalBatchNorm2d`).

    Args:
        cfg: MODEL.RESNETS, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT are read.
        input_shape: channels of the images.

    Raises:
        ConfigError: the deformable stages, or the features of the pyramid, do not fit the ResNet.
    """
    resnets = cfg.MODEL.RESNETS
    deform_on = resnets.DEFORM_ON_PER_STAGE
    allowed = f"one boolean for each of {', '.join(STAGES)}"
    fits = len(deform_on) == len(STAGES)
    require(fits, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", deform_on, allowed)
    groups = resnets.DEFORM_NUM_GROUPS if any(deform_on) else 1
    require(groups == 1, "MODEL.RESNETS.DEFORM_NUM_GROUPS", groups, "1: channels share the offsets")
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * len(STAGES)
    if resnets.NORM == "EvalBN":
        plain.MODEL.RESNETS.NORM = "BN"
    resnet = build_resnet_backbone(plain, input_shape)
    if resnets.NORM == "EvalBN":
        for module in list(resnet.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, EvalBatchNorm2d(child.num_features))
    for name, deform in zip(STAGES, deform_on, strict=True):
        # A ResNet ends with the last stage that is used.
        if deform and hasattr(resnet, name):
            _make_deformable(getattr(resnet, name), resnets.DEFORM_MODULATED)
    require_freezable(cfg)
    resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)  # the offsets too
    return build_fpn(cfg, cast(ResNet, resnet))


def _make_deformable(stage: nn.Sequential, modulated: bool) -> None:
    """Replace the second convolution of each block of a stage; weights and norm are kept."""
    for block in stage.children():
        conv = cast(Conv2d, block.conv2)
        block.conv2 = deform_conv = DeformConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            modulated=modulated,
            groups=conv.groups,
            norm=conv.norm,
            activation=conv.activation,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
        )
        deform_conv.weight = conv.weight
