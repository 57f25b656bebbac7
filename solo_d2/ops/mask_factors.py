"""Masks as products of factors: maps of an image convolved with one kernel per mask.

    mask[p] = product over the factors of sigmoid(kernels[p] * maps + bias[p])

- SOLOv2 (arXiv:2003.10152, equation 1): one factor, predicted kernels on the mask feature.
- SOLO: one factor, the kernels and biases of the last convolution.
- Decoupled SOLO (arXiv:1912.04488, equation 5): two factors, each of which selects one map.

Shape letters: B images, P masks, E channels of the maps, D = side^2 * E kernel length, H W rows and
columns.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class MaskFactor(NamedTuple):
    """A factor of P masks, of a batch or of one image.

    Attributes:
        maps: (B, E, H, W), or (E, H, W) of one image.
        kernels: (P, D) in the order channel, row, column; or (P,) int64 in [0, E), the map of each
            mask. P may be 0.
        bias: (P,), with kernels (P, D) only; or None.
    """

    maps: Tensor
    kernels: Tensor
    bias: Tensor | None = None

    @property
    def takes_maps(self) -> bool:
        """Whether each mask selects one of the maps, without a convolution."""
        return self.kernels.dim() == 1

    @property
    def radius(self) -> int:
        """Number of rows of the maps above and below that a row of the masks depends on."""
        return 0 if self.takes_maps else kernel_side(self.kernels, self.maps.shape[-3]) // 2

    @property
    def is_product(self) -> bool:
        """Whether the logits are the matrix product of the kernels and the maps."""
        return self.kernels.shape[1:] == (self.maps.shape[-3],) and self.bias is None

    def of_image(self, image: int, masks: slice = slice(None)) -> "MaskFactor":
        """Select the maps of an image of the batch, and masks of that image."""
        bias = None if self.bias is None else self.bias[masks]
        return MaskFactor(self.maps[image], self.kernels[masks], bias)

    def to_float32(self) -> "MaskFactor":
        """Convert all values to float32."""
        kernels = self.kernels if self.takes_maps else self.kernels.float()
        bias = None if self.bias is None else self.bias.float()
        return MaskFactor(self.maps.float(), kernels, bias)

    def probs(self) -> Tensor:
        """Compute (P, H, W) probabilities from the maps of one image."""
        if self.takes_maps:
            return self.maps[self.kernels].sigmoid()
        return dynamic_conv(self.kernels, self.maps, self.bias).sigmoid_()


def multiply_factors(factors: Sequence[MaskFactor], size: tuple[int, int] | None = None) -> Tensor:
    """Compute the masks of an image.

    Args:
        factors: factors with the maps of one image, all of one size.
        size: size to which factors are resized before the product, as published; None: no resizing.

    Returns:
        (P, H, W) or (P, *size) probabilities.
    """
    probs = [factor.probs() for factor in factors]
    if size is not None:
        probs = [resize(each[None], size)[0] for each in probs]
    return reduce(torch.mul, probs)


def kernel_side(kernels: Tensor, channels: int) -> int:
    """Return the side of square kernels (..., D) for maps with this number of channels."""
    return int(round((kernels.shape[-1] / channels) ** 0.5))


def dynamic_conv(kernels: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve maps with predicted kernels (SOLOv2, equation 1).

    Args:
        kernels: (P, D), in the order channel, row, column; P may be 0.
        maps: (E, H, W).
        bias: (P,), added to the logits of each kernel.

    Returns:
        (P, H, W) logits.
    """
    num, (channels, height, width) = len(kernels), maps.shape
    side = kernel_side(kernels, channels)
    if side == 1 or num == 0:  # unlike a convolution, a matrix product accepts zero kernels
        kernels, pixels = kernels[:, :channels], maps.flatten(1)
        if bias is None:
            return (kernels @ pixels).view(num, height, width)
        return torch.addmm(bias[:, None], kernels, pixels).view(num, height, width)
    weight = kernels.view(num, channels, side, side)
    return F.conv2d(maps[None], weight, bias, padding=side // 2)[0]


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, C, H, W) bilinearly to (B, C, *size)."""
    # In a trace the comparison would specialize the graph.
    if not torch.compiler.is_compiling() and tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_to_output(
    maps: Tensor, stride: int, image_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """Upsample maps (B, C, H, W) by their stride, crop the padding, and resize to the output."""
    maps = resize(maps, (maps.shape[2] * stride, maps.shape[3] * stride))
    return resize(maps[:, :, : image_size[0], : image_size[1]], output_size)
