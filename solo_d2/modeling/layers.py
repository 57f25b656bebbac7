"""Layers that all heads are made of."""

import math

from detectron2.layers import Conv2d, get_norm
from torch import nn


def conv_norm_relu(
    in_channels: int, out_channels: int, *, norm: str, kernel_size: int = 3
) -> Conv2d:
    """A convolution that keeps the size, then norm and ReLU; normal(0, 0.01) weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; "GN" needs a multiple of 32.
        norm: a norm of Detectron2 ("GN", "BN", "SyncBN", ...), or "" for a bias instead.
        kernel_size: odd side of the kernel.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(inplace=True),
    )
    init_conv(conv)
    return conv


def conv_tower(in_channels: int, channels: int, num_convs: int, *, norm: str) -> nn.Sequential:
    """3x3 convolutions with norm and ReLU, one after another."""
    widths = [in_channels] + [channels] * num_convs
    return nn.Sequential(
        *(conv_norm_relu(a, b, norm=norm) for a, b in zip(widths, widths[1:], strict=False))
    )


def predictor(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, prior_prob: float | None = None
) -> Conv2d:
    """A plain convolution with bias that predicts logits or kernels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the kernel.
        prior_prob: probability that the logits start from (focal loss paper, section 4.1); None for
            a bias of 0.
    """
    conv = Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    init_conv(conv)
    if prior_prob is not None:
        nn.init.constant_(conv.bias, -math.log((1 - prior_prob) / prior_prob))
    return conv


def init_conv(conv: nn.Conv2d) -> None:
    """Weights from normal(0, 0.01) and a bias of 0, as all published heads start."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
