"""Fused dynamic masks against torch; without a GPU in Triton's interpreter."""

import pytest
import torch

from tests.ops.test_binary_masks import check, factors

pytest.importorskip("triton")
from solo_d2.ops.binary_masks import BinaryMasks, binarize_chunks, binarize_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(kernels, feature, thresh=0.5):
    found = binarize_product(kernels.to(DEVICE), feature.to(DEVICE), thresh, backend="triton")
    return BinaryMasks(*(x.cpu() for x in found))


@pytest.mark.parametrize(
    "shape",
    [(0, 4, 5, 6), (3, 4, 0, 5), (1, 1, 1, 1), (17, 5, 7, 13), (129, 33, 7, 13), (65, 64, 20, 31)],
)
def test_odd_sizes(shape):
    kernels, feature = factors(*shape)
    check(run(kernels, feature), kernels, feature)


@pytest.mark.parametrize("thresh", [0, 0.3, 1])
def test_thresholds(thresh):
    kernels, feature = factors(9, 6, 11, 12)
    check(run(kernels, feature, thresh), kernels, feature, thresh)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("the interpreter has no bfloat16 and multiplies its bits as integers")
    kernels, feature = (x.to(dtype) for x in factors(9, 40, 10, 14))
    check(run(kernels, feature), kernels, feature)


def test_mixed_precision_and_strides():
    kernels, feature = factors(9, 8, 10, 14)
    kernels, feature = kernels.half()[:, ::2], feature[::2, :, 3:]
    check(run(kernels, feature), kernels, feature)


def test_a_pixel_of_nan_makes_the_soft_sum_nan():
    kernels, feature = factors(5, 4, 6, 7)
    kernels[1, 2] = float("nan")
    feature[0, 2, 3] = float("nan")
    found, expected = run(kernels, feature), binarize_product(kernels, feature, 0.5)
    assert found.soft_sums.sum(dim=1).isnan().all()
    assert torch.equal(found.masks, expected.masks)
    feature[0, 2, 3] = 0
    assert (
        run(kernels, feature).soft_sums.sum(dim=1).isnan().tolist() == [False, True] + [False] * 3
    )


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (1, 1, 1), (35, 7, 13), (70, 16, 20)])
def test_given_probabilities(shape):
    probs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    probs[::9, -1:, -1:] = float("nan")
    chunks = [x.to(DEVICE) for x in probs.split(33)]
    found = binarize_chunks(chunks, shape, 0.4, torch.device(DEVICE), backend="triton")
    assert torch.equal(found.masks.cpu(), probs > 0.4)
    assert torch.equal(found.areas.sum(dim=1).cpu(), (probs > 0.4).sum(dim=(1, 2)))
    expected = (probs * (probs > 0.4)).sum(dim=(1, 2))
    torch.testing.assert_close(found.soft_sums.sum(dim=1).cpu(), expected, equal_nan=True)


def truncate(x):
    """What tensor cores see of a float32 number: 10 bits after the point."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def test_three_products_of_tf32_are_as_exact_as_float32():
    """An emulation: neither this machine nor Triton's interpreter has TF32."""
    kernels, feature = factors(50, 256, 40, 60)
    feature = feature.flatten(1)
    exact = kernels.double() @ feature.double()
    a, b = truncate(kernels), truncate(feature)
    a_rest, b_rest = truncate(kernels - a), truncate(feature - b)
    found = a @ b_rest + a_rest @ b + a @ b
    own_error = (kernels @ feature - exact).abs().max()
    assert (found - exact).abs().max() <= 2 * own_error
    assert (a @ b - exact).abs().max() > 100 * own_error
    assert ((found > 0) != (exact > 0)).sum() <= 1  # of 120,000 pixels


def test_double_precision_is_float32():
    kernels, feature = factors(3, 5, 6, 7)
    check(run(kernels.double(), feature.double()), kernels, feature)
