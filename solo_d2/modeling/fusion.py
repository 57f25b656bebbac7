"""Folds BatchNorms into the convolutions before them, for inference."""

from typing import Any

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import regnet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from solo_d2.modeling.layers import DeformConv2d

Conv = nn.Conv2d | DeformConv2d
Norm = FrozenBatchNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm

# Modules of Detectron2's that call a convolution and the norm that is registered after it in turn,
# rather than through the convolution.
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
        if isinstance(module, Conv) and _is_foldable(getattr(module, "norm", None)):
            _fold(module, module.norm)
            module.norm = None
            count += 1
        elif isinstance(module, NORM_AFTER_CONV):
            count += _fold_children(module)
    return count


def _fold_children(module: nn.Module) -> int:
    """The same for the children of a module, which run in the order of their registration."""
    count = 0
    children = list(module.named_children())
    for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
        if isinstance(conv, nn.Conv2d) and _is_foldable(norm):
            _fold(conv, norm)
            setattr(module, name, nn.Identity())
            count += 1
    return count


def _is_foldable(norm: Any) -> bool:
    return isinstance(norm, Norm) and norm.running_var is not None


def _fold(conv: Conv, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
