"""Deformable convolution in slow loops, from Deformable ConvNets v1 and v2 (arXiv:1811.11168)."""

import math

import torch


def sample(image, y, x):
    """Bilinear value of (C, H, W) at a place; zero beyond the pixels."""
    total = image.new_zeros(len(image))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return total


def deform_conv(x, layer):
    """What a `DeformConv2d` without bias makes of (B, C, H, W) before its norm."""
    predicted = torch.nn.functional.conv2d(
        x, layer.offset.weight, layer.offset.bias, layer.stride, layer.padding, layer.dilation
    )
    side, taps = layer.kernel_size[0], layer.kernel_size[0] ** 2
    stride, padding, dilation = layer.stride[0], layer.padding[0], layer.dilation[0]
    per_group = layer.weight.shape[1]
    out_per_group = layer.weight.shape[0] // layer.groups
    result = x.new_zeros(len(x), layer.weight.shape[0], *predicted.shape[2:])
    for image, offsets, output in zip(x, predicted, result, strict=True):
        for row in range(output.shape[1]):
            for column in range(output.shape[2]):
                for tap in range(taps):
                    dy, dx = offsets[2 * tap : 2 * tap + 2, row, column].tolist()
                    value = sample(
                        image,
                        row * stride - padding + tap // side * dilation + dy,
                        column * stride - padding + tap % side * dilation + dx,
                    )
                    if layer.modulated:
                        value = value * offsets[2 * taps + tap, row, column].sigmoid()
                    for group in range(layer.groups):
                        outs = slice(group * out_per_group, (group + 1) * out_per_group)
                        ins = slice(group * per_group, (group + 1) * per_group)
                        weight = layer.weight[outs, :, tap // side, tap % side]
                        output[outs, row, column] += weight @ value[ins]
    return result
