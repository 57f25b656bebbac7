"""Folds BatchNorms into the convolutions before them, for inference."""

from typing import Any

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import regnet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)
# Modules of Detectron2's whose children run in the order of their registration: a norm follows its
# convolution. Other convolutions hold their norm.
NORM_AFTER_CONV = (regnet.SimpleStem, regnet.ResBottleneckBlock, regnet.BottleneckTransform)


def fuse_batch_norms(model: nn.Module) -> int:
    """Fold each BatchNorm that follows a convolution into its weights and bias, in place.

    Folded are the norms of Detectron2's and our convolutions and of RegNet's blocks, frozen or not.
    A norm of batch statistics (one that keeps no running ones) stays.

    Args:
        model: in eval mode; it cannot be trained on afterwards.

    Returns:
        How many were folded.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _fold(module, getattr(module, "norm", None)):
            module.norm = None  # type: ignore[assignment]
            count += 1
        elif isinstance(module, NORM_AFTER_CONV):
            children = list(module.named_children())
            for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
                if isinstance(conv, nn.Conv2d) and _fold(conv, norm):
                    setattr(module, name, nn.Identity())
                    count += 1
    return count


def _fold(conv: nn.Conv2d, norm: Any) -> bool:
    """Fold a norm into a convolution if it can be; returns whether it was."""
    if not isinstance(norm, NORMS) or norm.running_var is None:
        return False
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,  # type: ignore[arg-type]
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return True
