"""Deformable convolution on the CPU against torchvision's operator."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from solo_d2.ops.deform_conv import _deform_conv_sampled, deform_conv

CASES = [
    # batch, channels, out, groups, height, width, kernel, stride, padding, dilation
    (2, 8, 6, 1, 9, 7, 3, 1, 1, 1),
    (1, 8, 16, 4, 10, 13, 3, 2, 1, 1),
    (2, 4, 4, 2, 8, 8, 3, 1, 2, 2),
    (3, 5, 2, 1, 6, 4, 1, 1, 0, 1),
    (1, 4, 4, 1, 3, 3, 3, 1, 0, 1),
    (0, 4, 4, 1, 5, 5, 3, 1, 1, 1),
]


def make_inputs(case, modulated):
    batch, channels, out, groups, height, width, side, stride, padding, dilation = case
    generator = torch.Generator().manual_seed(0)
    size = [(n + 2 * padding - dilation * (side - 1) - 1) // stride + 1 for n in (height, width)]
    shapes = {
        "x": (batch, channels, height, width),
        "offset": (batch, 2 * side**2, *size),
        "weight": (out, channels // groups, side, side),
        "bias": (out,),
    }
    if modulated:
        shapes["mask"] = (batch, side**2, *size)
    inputs = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    inputs["offset"] = inputs["offset"] * 2  # far enough to leave the input
    return inputs, {"stride": stride, "padding": padding, "dilation": dilation}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case, modulated):
    inputs, settings = make_inputs(case, modulated)
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    ours, expected = deform_conv(**inputs, **settings), deform_conv2d(
        inputs["x"], inputs["offset"], inputs["weight"], inputs["bias"],
        mask=inputs.get("mask"), **settings,
    )  # fmt: skip
    torch.testing.assert_close(ours, expected)
    if case[0]:
        ours, expected = (
            torch.autograd.grad(result.square().sum(), list(inputs.values()))
            for result in (ours, expected)
        )
        torch.testing.assert_close(ours, expected)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    inputs, settings = make_inputs(CASES[0], modulated=True)
    on_gpu = deform_conv(**{k: v.cuda().float() for k, v in inputs.items()}, **settings)
    torch.testing.assert_close(
        on_gpu.cpu().double(), deform_conv(**inputs, **settings), rtol=1e-4, atol=1e-4
    )


def test_half_precision_keeps_its_dtype():
    inputs, settings = make_inputs(CASES[0], modulated=True)
    half = {name: value.bfloat16() for name, value in inputs.items()}
    result = _deform_conv_sampled(**half, **settings)
    assert result.dtype == torch.bfloat16
    assert result.isfinite().all()
