"""Layers of all heads: convolutions with norms, towers, predictors."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from solo_d2.ops.coords import append_coords
from solo_d2.ops.deform_conv import deform_conv

# Kinds of convolution: plain, deformable (arXiv:1703.06211), modulated deformable
# (arXiv:1811.11168).
DEFORMS = ("", "v1", "v2")
GROUP_NORM_GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """torch's, also for a map of one pixel whose groups have one channel.

    There torch's own raises an error, in inference too. A number alone is its own mean, so what is
    left of it is the bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def make_norm(norm: str, channels: int) -> nn.Module | None:
    """A norm of Detectron2's by its name; None for ""."""
    if norm == "GN":
        return GroupNorm(GROUP_NORM_GROUPS, channels)
    return get_norm(norm, channels)


class DeformConv2d(nn.Module):
    """Deformable convolution that trains and runs on any device.

    A plain convolution predicts for each output pixel where each position of the kernel looks
    (dy, dx, in pixels of the input, row by row of the kernel) and, if modulated, how much it counts
    (logits). Its weights start at 0, so that the layer starts as a plain convolution, halved if
    modulated.

    Attributes:
        weight: (out, in / groups, k, k).
        bias: (out,) or None.
        offset: the convolution that predicts offsets and logits.
        norm: applied to the result, or None.
        activation: applied last, or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
    ):
        """Make the layer.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            kernel_size: side of the kernel.
            stride: of the convolution.
            padding: zeros on each side.
            dilation: of the convolution.
            groups: of channels, for the weights; all share the offsets.
            bias: whether there is a bias.
            modulated: v2 rather than v1.
            norm: applied to the result.
            activation: applied after the norm.
        """
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = groups
        self.modulated = modulated
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.positions = kernel_size**2
        self.offset = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * self.positions,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        self.norm = norm
        self.activation = activation
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(cast(Tensor, self.offset.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        predicted = self.offset(x)
        mask = predicted[:, 2 * self.positions :].sigmoid() if self.modulated else None
        x = deform_conv(
            x,
            predicted[:, : 2 * self.positions],
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def conv_norm_relu(
    in_channels: int, out_channels: int, *, norm: str, kernel_size: int = 3, deform: str = ""
) -> nn.Module:
    """A convolution that keeps the size, then norm and ReLU; normal(0, 0.01) weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; "GN" needs a multiple of 32.
        norm: a norm of Detectron2 ("GN", "BN", "SyncBN", ...), or "" for a bias instead.
        kernel_size: odd side of the kernel.
        deform: one of `DEFORMS`.
    """
    settings: dict[str, Any] = {
        "padding": kernel_size // 2,
        "bias": not norm,
        "norm": make_norm(norm, out_channels),
        "activation": nn.ReLU(inplace=True),
    }
    if deform:
        modulated = {"v1": False, "v2": True}[deform]
        conv: nn.Module = DeformConv2d(
            in_channels, out_channels, kernel_size, modulated=modulated, **settings
        )
    else:
        conv = Conv2d(in_channels, out_channels, kernel_size, **settings)
    init_conv(conv)
    return conv


class ConvTower(nn.Sequential):
    """3x3 convolutions with norm and ReLU, one after another."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_convs: int,
        *,
        norm: str,
        coords: str = "",
        num_coord_convs: int = 1,
        deform: str = "",
        num_deform_convs: int = 1,
    ):
        """Make the tower.

        Args:
            in_channels: channels of the input.
            channels: of each convolution.
            num_convs: how many.
            norm: a norm of Detectron2.
            coords: axes whose coordinates are appended to the input of a convolution, see
                `append_coords`; "" for none.
            num_coord_convs: how many convolutions get them, from the first one.
            deform: one of `DEFORMS`.
            num_deform_convs: how many convolutions are deformable, up to the last one.
        """
        widths = [in_channels] + [channels] * num_convs
        self.coords: Sequence[str] = [
            coords if i < num_coord_convs else "" for i in range(num_convs)
        ]
        super().__init__(
            *(
                conv_norm_relu(
                    widths[i] + len(self.coords[i]),
                    channels,
                    norm=norm,
                    deform=deform if i >= num_convs - num_deform_convs else "",
                )
                for i in range(num_convs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H, W)."""
        for conv, coords in zip(self, self.coords, strict=True):
            x = conv(append_coords(x, coords) if coords else x)
        return x


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


def init_conv(conv: nn.Module) -> None:
    """Weights from normal(0, 0.01) and a bias of 0, as all published heads start."""
    nn.init.normal_(cast(Tensor, conv.weight), std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(cast(Tensor, conv.bias))
