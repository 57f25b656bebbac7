"""Dynamic convolution: a feature convolved with predicted kernels (SOLOv2, section 2.1.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def dynamic_conv(kernels: Tensor, feature: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve a feature with predicted kernels (equation 1).

    Args:
        kernels: (P, D), D = side^2 * E, in the order channel, row, column; P may be 0.
        feature: (E, H, W).
        bias: (P,), added to the logits of each kernel.

    Returns:
        (P, H, W) logits.
    """
    num, length = kernels.shape
    channels, height, width = feature.shape
    side = round((length / channels) ** 0.5)
    if side == 1 or num == 0:  # a matrix product, unlike a convolution, accepts zero kernels
        kernels, pixels = kernels[:, :channels], feature.flatten(1)
        if bias is None:
            return (kernels @ pixels).view(num, height, width)
        return torch.addmm(bias[:, None], kernels, pixels).view(num, height, width)
    weight = kernels.view(num, channels, side, side)
    return F.conv2d(feature[None], weight, bias, padding=side // 2)[0]
