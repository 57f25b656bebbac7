"""Winograd's convolutions equal torch's, in value and gradients, and run where they are faster."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solo_d2.ops import winograd
from solo_d2.ops.winograd import WinogradConvolutions, is_wide, transforms, winograd_conv2d


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_transforms_give_the_convolution():
    windows, kernels, tiles = transforms()
    window, kernel = random(6, 6).double(), random(3, 3).double()
    found = tiles @ ((kernels @ kernel.flatten()) * (windows @ window.flatten()))
    expected = F.conv2d(window[None, None], kernel[None, None])
    torch.testing.assert_close(found.view(4, 4), expected[0, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
# Less than a tile, whole tiles, parts of tiles, and rows in several pieces.
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 2, 4, 8), (2, 5, 13, 18), (1, 1, 30, 423)])
def test_equals_torch_with_gradients(shape, bias, memory_format):
    x = random(*shape).contiguous(memory_format=memory_format).requires_grad_()
    weight = random(7, shape[1], 3, 3).requires_grad_()
    inputs = [x, weight] + [random(7).requires_grad_()] * bias
    expected = F.conv2d(*(t.double() for t in inputs), padding=1)
    found = winograd_conv2d(*inputs)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    grad = random(*found.shape)
    pairs = zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad.double()),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(
            one, other, rtol=1e-5, atol=2e-6 * float(other.abs().max()) + 1e-4
        )


def test_only_needed_gradients_are_computed():
    x, weight = random(1, 4, 8, 8), random(4, 4, 3, 3)
    weight.requires_grad_()
    winograd_conv2d(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(
        weight.grad, torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), weight)[0]
    )


def test_error_is_below_that_of_the_usual_points():
    """With 0, 1, -1, 2 and -2 it is 1.9e-6; with these points 1.0e-6, relative to the outputs."""
    x, weight = random(1, 256, 24, 24).relu(), random(64, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert (winograd_conv2d(x, weight) - exact).norm() < 1.4e-6 * exact.norm()


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the inputs that are convolved by Winograd's algorithm."""
    seen = []

    def convolve(x, *others):
        seen.append(tuple(x.shape))
        return real(x, *others)

    real = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", convolve)
    return seen


WIDE = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1}


@pytest.mark.parametrize(
    ("settings", "size", "is_faster"),
    [
        ({}, 24, True),
        ({"bias": False}, 21, True),
        ({}, 16, False),  # few tiles
        ({"in_channels": 120}, 24, False),
        ({"out_channels": 2048}, 24, True),
        ({"stride": 2}, 48, False),
        ({"dilation": 2, "padding": 2}, 24, False),
        ({"padding": 0}, 26, False),
        ({"groups": 2}, 24, False),
        ({"kernel_size": 1, "padding": 0}, 24, False),
        ({"padding_mode": "reflect"}, 24, False),  # padded before the call
    ],
)
@pytest.mark.parametrize("keep_kernels", [True, False])
def test_suitable_convolutions_are_replaced(settings, size, is_faster, keep_kernels, calls):
    conv = nn.Conv2d(**WIDE | settings)
    x = random(1, conv.in_channels, size, size)
    expected = conv(x)
    with WinogradConvolutions(keep_kernels=keep_kernels), torch.set_grad_enabled(not keep_kernels):
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)
    assert bool(calls) == is_faster
    calls.clear()
    conv(x)
    assert not calls


def test_other_types_and_autocast_run_as_usual(calls):
    conv, x = nn.Conv2d(**WIDE), random(1, 128, 24, 24)
    with WinogradConvolutions():
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        assert copy.deepcopy(conv).double()(x.double()).dtype == torch.float64
        assert conv(x[0]).shape == x[0].shape
    assert not calls


def test_kernels_are_kept_for_inference(monkeypatch):
    conv, x = nn.Conv2d(**WIDE).requires_grad_(False), random(1, 128, 24, 24)
    made = []
    real = winograd.transform_kernels
    monkeypatch.setattr(winograd, "transform_kernels", lambda *args: made.append(1) or real(*args))
    context = WinogradConvolutions(keep_kernels=True)
    for _ in range(3):
        with context, torch.no_grad():
            conv(x)
    assert len(made) == 1
    for twin in (copy.deepcopy(context), pickle.loads(pickle.dumps(context))):
        assert twin.keep_kernels
        with twin, torch.no_grad():
            torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert len(made) == 3
    conv.weight.zero_()
    with context, torch.no_grad():
        assert not (conv(x) - conv.bias[:, None, None]).any()


def test_works_after_inference_mode(monkeypatch):
    monkeypatch.setattr(winograd, "_scratch", winograd._Scratch())
    conv, x = nn.Conv2d(**WIDE), random(1, 128, 24, 24)
    context = WinogradConvolutions(keep_kernels=True)
    with context, torch.inference_mode():
        expected = conv(x)
    with context, torch.no_grad():
        assert torch.equal(conv(x), expected)
    winograd_conv2d(x, conv.weight).sum().backward()
    with context, torch.inference_mode():
        made_there = nn.Conv2d(**WIDE)
        assert not made_there(x).requires_grad


def test_gradients_of_other_convolutions_need_the_default_format(monkeypatch):
    """Those of torch are several times slower in channels_last."""
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
    x = random(1, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    expected = conv(x)
    with WinogradConvolutions():
        y = conv(x)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous()
    with WinogradConvolutions(), torch.no_grad():
        assert conv(x).is_contiguous(memory_format=torch.channels_last)


def test_wide_weights():
    assert is_wide(torch.empty(128, 128, 3, 3, device="meta"))
    assert not is_wide(torch.empty(64, 256, 3, 3, device="meta"))
    assert not is_wide(torch.empty(512, 512, 1, 1, device="meta"))
