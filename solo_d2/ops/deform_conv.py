"""Deformable convolution (arXiv:1703.06211), modulated (arXiv:1811.11168) if a mask is given.

GPUs use torchvision's operator. Its CPU version runs element by element on one thread, so on the
CPU the input is sampled by one `grid_sample`, which is vectorized and threaded, and multiplied by
the weights.

B images, C input channels, O output channels, G groups, k side of the kernel, H W size of the
input, H' W' of the output.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve at displaced positions, with zeros outside the input.

    Args:
        x: (B, C, H, W).
        offset: (B, 2 k^2, H', W'), (dy, dx) in input pixels for each kernel position, row by row.
        weight: (O, C / G, k, k).
        bias: (O,) or None.
        stride: of the convolution.
        padding: on each side.
        dilation: of the convolution.
        mask: (B, k^2, H', W') factors of the samples, or None.

    Returns:
        (B, O, H', W').
    """
    if x.is_cuda:
        result: Tensor = deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
        return result
    return _deform_conv_sampled(x, offset, weight, bias, stride, padding, dilation, mask)


def _deform_conv_sampled(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    mask: Tensor | None,
) -> Tensor:
    batch, channels, height, width = x.shape
    out_channels, channels_per_group, side, _ = weight.shape
    out_height, out_width = offset.shape[-2:]
    positions, groups = side * side, channels // channels_per_group

    displacement = offset.view(batch, positions, 2, out_height, out_width)
    step = torch.arange(side, device=x.device) * dilation
    rows = torch.arange(out_height, device=x.device) * stride - padding
    columns = torch.arange(out_width, device=x.device) * stride - padding
    y = displacement[:, :, 0] + (rows[:, None] + step.repeat_interleave(side, dim=0)[:, None, None])
    x_ = displacement[:, :, 1] + (columns + step.repeat(side)[:, None, None])
    # The coordinates of grid_sample: pixel centers are at (2 i + 1) / size - 1.
    grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    grid = grid.view(batch, positions * out_height, out_width, 2).to(x.dtype)
    samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    samples = samples.view(batch, channels, positions, out_height, out_width)
    if mask is not None:
        samples = samples * mask[:, None]
    size = out_height * out_width
    samples = samples.view(batch, groups, channels_per_group * positions, size)
    kernels = weight.view(groups, out_channels // groups, -1)
    result = (kernels @ samples).view(batch, out_channels, out_height, out_width)
    return result if bias is None else result + bias[:, None, None]
