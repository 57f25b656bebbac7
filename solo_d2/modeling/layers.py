"""Layers of the heads: convolutions with norms, towers, predictors."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from solo_d2.ops.coords import append_coords
from solo_d2.ops.deform_conv import deform_conv
from solo_d2.ops.recompute import recomputed

# Kinds of convolution: plain, deformable (arXiv:1703.06211), modulated deformable
# (arXiv:1811.11168).
DEFORMS = ("", "v1", "v2")
GROUP_NORM_GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """GroupNorm without torch's check that rejects one pixel in groups of one channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def make_norm(norm: str, channels: int) -> nn.Module | None:
    """Create a norm of Detectron2 by name; None for ""."""
    if norm == "GN":
        return GroupNorm(GROUP_NORM_GROUPS, channels)
    return get_norm(norm, channels)


class NormedConv2d(Conv2d):
    """Convolution of Detectron2, of which a GroupNorm and the activation are `recomputed`."""

    @property
    def recomputes(self) -> bool:
        """Whether norm and activation can be computed again without side effects."""
        return isinstance(self.norm, nn.GroupNorm)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        if not self.recomputes:
            return super().forward(x)
        return recomputed(self._normalize, self._conv_forward(x, self.weight, self.bias))

    def _normalize(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class DeformConv2d(nn.Conv2d):
    """Deformable convolution for training and inference on any device.

    For each output pixel a plain convolution predicts the offset of each kernel position (dy, dx in
    input pixels, row by row of the kernel) and, if modulated, the logit of its weight. It is
    initialized with 0, so that the layer starts as a plain convolution, halved if modulated. All
    groups share the offsets.

    Attributes:
        modulated: v2 rather than v1.
        offset: convolution that predicts offsets and logits.
        norm: norm of the result, or None.
        activation: final activation, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        modulated: bool,
        groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
        **window: Any,
    ):
        """Create the layer; `window` is stride, padding and dilation of `nn.Conv2d`."""
        super().__init__(in_channels, out_channels, kernel_size, groups=groups, bias=bias, **window)
        self.modulated, self.positions = modulated, kernel_size**2
        predicted = (3 if modulated else 2) * self.positions
        self.offset = nn.Conv2d(in_channels, predicted, kernel_size, **window)
        self.norm, self.activation = norm, activation
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
            stride=self.stride[0],
            padding=cast(int, self.padding[0]),
            dilation=self.dilation[0],
            mask=mask,
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def conv_norm_relu(
    in_channels: int, out_channels: int, *, norm: str, kernel_size: int = 3, deform: str = ""
) -> nn.Module:
    """Create a convolution of unchanged size, norm and ReLU, with normal(0, 0.01) weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; a multiple of 32 for "GN".
        norm: a norm of Detectron2 ("GN", "BN", "SyncBN", ...); "" for a bias instead.
        kernel_size: side of the kernel, odd.
        deform: one of `DEFORMS`.
    """
    settings: dict[str, Any] = {
        "padding": kernel_size // 2,
        "bias": not norm,
        "norm": make_norm(norm, out_channels),
        "activation": nn.ReLU(inplace=True),
    }
    sides = (in_channels, out_channels, kernel_size)
    if deform:
        conv: nn.Conv2d = DeformConv2d(*sides, modulated=deform == "v2", **settings)
    else:
        conv = NormedConv2d(*sides, **settings)
    init_conv(conv)
    return conv


class ConvTower(nn.Sequential):
    """Sequence of 3x3 convolutions with norm and ReLU.

    The first `num_coord_convs` also get the coordinates `coords` (see `append_coords`); the last
    `num_deform_convs` are deformable, of a kind in `DEFORMS`.
    """

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
        widths = [in_channels] + [channels] * num_convs
        self.coords: Sequence[str] = [
            coords if i < num_coord_convs else "" for i in range(num_convs)
        ]
        convs = (
            conv_norm_relu(
                widths[i] + len(self.coords[i]),
                channels,
                norm=norm,
                deform=deform if i >= num_convs - num_deform_convs else "",
            )
            for i in range(num_convs)
        )
        super().__init__(*convs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions: (B, C, H, W) to (B, channels, H, W)."""
        for conv, coords in zip(self, self.coords, strict=True):
            x = conv(append_coords(x, coords) if coords else x)
        return x


def predictor(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, prior_prob: float | None = None
) -> Conv2d:
    """Create a convolution with bias that predicts logits or kernels.

    The bias is initialized for a probability of `prior_prob` (focal loss paper, section 4.1), or 0.
    """
    conv = Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    init_conv(conv)
    if prior_prob is not None:
        nn.init.constant_(conv.bias, -math.log((1 - prior_prob) / prior_prob))
    return conv


def init_conv(conv: nn.Conv2d) -> None:
    """Initialize weights with normal(0, 0.01) and bias with 0, as in all published heads."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
