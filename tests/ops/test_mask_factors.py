"""Masks as products of factors, against loops."""

import pytest
import torch
from torch.nn import functional as F

from solo_d2.ops.mask_factors import MaskFactor, dynamic_conv, multiply_factors


@pytest.mark.parametrize("side", [1, 3])
def test_dynamic_conv_equals_a_loop_over_kernels(side):
    feature = torch.randn(6, 9, 8)
    kernels = torch.randn(5, side * side * 6)
    result = dynamic_conv(kernels, feature)
    for kernel, logits in zip(kernels, result, strict=True):
        weight = kernel.view(1, 6, side, side)
        expected = F.conv2d(feature[None], weight, padding=side // 2)[0, 0]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [None, (5, 9), (18, 16)])
def test_factors_are_resized_before_they_are_multiplied(size):
    maps = torch.randn(2, 6, 9, 8)
    taken = MaskFactor(maps, torch.tensor([3, 0, 3]))
    convolved = MaskFactor(maps, torch.randn(3, 6), torch.randn(3))
    assert taken.takes_maps
    assert not convolved.is_product  # it has a bias
    masks = multiply_factors([f.of_image(1, slice(1, 3)) for f in (taken, convolved)], size)
    logits = torch.einsum("pe,ehw->phw", convolved.kernels, maps[1]) + convolved.bias[:, None, None]
    expected = [maps[1, [0, 3]].sigmoid(), logits[1:].sigmoid()]
    if size:
        expected = [F.interpolate(x[None], size, mode="bilinear")[0] for x in expected]
    torch.testing.assert_close(masks, expected[0] * expected[1])
