"""Mask features of SOLOv2 (arXiv:2003.10152, section 2.1.2 and supplement)."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from solo_d2.modeling.layers import ConvTower, NormedConv2d, conv_norm_relu
from solo_d2.ops.coords import append_coords
from solo_d2.ops.recompute import recomputed


class MaskFeatureBranch(nn.Module):
    """Merge the features of a pyramid at the stride of the finest one.

    (3x3 convolution, norm, ReLU, 2x upsampling) is applied to each feature until it has the finest
    stride; the finest one gets one convolution. A 1x1 convolution is applied to their sum.
    Upsampling is linear, so the coarser features are summed before their last upsampling.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        strides: Sequence[int],
        conv_dim: int = 128,
        out_channels: int = 256,
        norm: str = "GN",
        coords: bool = True,
        deform: str = "",
    ):
        """Create the branch.

        Args:
            in_channels: channels of each feature, finest first.
            strides: stride of each feature in input pixels, each twice the one before.
            conv_dim: channels of the 3x3 convolutions.
            out_channels: E, channels of the result.
            norm: a norm of Detectron2.
            coords: whether the coarsest feature gets coordinate channels.
            deform: kind of deformable convolution, or "".
        """
        super().__init__()
        self.coords = coords
        self.levels = nn.ModuleList()  # of nn.ModuleList, the convolutions of a level
        for level, channels in enumerate(in_channels):
            doublings = (strides[level] // strides[0]).bit_length() - 1
            first = channels + 2 * (coords and level == len(in_channels) - 1)
            widths = [first] + [conv_dim] * max(doublings, 1)
            convs = (
                conv_norm_relu(a, b, norm=norm, deform=deform)
                for a, b in zip(widths, widths[1:], strict=False)
            )
            self.levels.append(nn.ModuleList(convs))
        self.output = conv_norm_relu(
            conv_dim, out_channels, norm=norm, kernel_size=1, deform=deform
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Merge features (B, C, H, W), finest first.

        Returns:
            (B, E, H, W) at the size of the finest feature, non-negative.
        """
        *finer, coarsest = features
        if self.coords:
            coarsest = append_coords(coarsest)
        merged: list[Tensor] = []
        for convs, feature in zip(self.levels, [*finer, coarsest], strict=True):
            for i, conv in enumerate(cast(nn.ModuleList, convs)):
                feature = conv(feature if i == 0 else doubled(feature))
            merged.append(feature)
        finest, *halves = merged
        if halves:
            finest = doubled(sum(halves[1:], halves[0])).add_(finest)
        return output_feature(self.output, finest)


class SeparateMaskFeatures(nn.Module):
    """A mask feature for each level, at twice the level's size (supplement: separate features).

    SOLO's mask tower, shared by all levels, followed by a 1x1 convolution. The arguments are those
    of `MaskFeatureBranch`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_convs: int,
        conv_dim: int,
        out_channels: int,
        norm: str,
        coords: bool,
        deform: str,
    ):
        super().__init__()
        self.tower = ConvTower(
            *(in_channels, conv_dim, num_convs),
            norm=norm,
            coords="xy" if coords else "",
            deform=deform,
            num_deform_convs=num_convs,
        )
        self.output = conv_norm_relu(
            conv_dim, out_channels, norm=norm, kernel_size=1, deform=deform
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Compute the mask feature (B, E, 2H, 2W), non-negative, of a level (B, C, H, W)."""
        return output_feature(self.output, doubled(self.tower(feature)))


def output_feature(output: nn.Module, feature: Tensor) -> Tensor:
    """Apply the last convolution, norm and ReLU, all of which are cheap to compute again."""
    if isinstance(output, NormedConv2d) and output.recomputes:
        return recomputed(output, feature, by_image=True)
    return output(feature)


def doubled(feature: Tensor) -> Tensor:
    """Upsample (B, C, H, W) to (B, C, 2H, 2W)."""
    return F.interpolate(feature, scale_factor=2, mode="bilinear", align_corners=False)
