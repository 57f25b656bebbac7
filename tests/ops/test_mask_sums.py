"""Strips of masks give the sums and gradients of whole masks, in less memory."""

import gc
import weakref

import pytest
import torch

from solo_d2.losses import SUM_FORMS, bce_loss, dice_loss, mask_focal_loss
from solo_d2.ops import mask_sums
from solo_d2.ops.mask_factors import MaskFactor, multiply_factors
from solo_d2.ops.mask_sums import sum_masks
from tools.benchmarks.common import peak_memory

CPU = torch.device("cpu")
HEIGHT, WIDTH, CHANNELS = 11, 7, 3
KINDS = ("1x1", "3x3", "products")
LOSSES = {"dice": dice_loss, "bce": bce_loss, "focal": mask_focal_loss}
dice_sums, dice_of_sums = SUM_FORMS[dice_loss]
SMALL = 4000  # memory for some lines of masks at a time


def make_case(kind, counts, dtype=torch.float32):
    """Factors of the masks of images, targets and their instances; all inputs want gradients."""
    torch.manual_seed(0)
    shape = (len(counts), CHANNELS, HEIGHT, WIDTH)
    num, side = sum(counts), {"1x1": 1, "3x3": 3, "products": 0}[kind]
    if side:
        bias = torch.randn(num, dtype=dtype) if side == 1 else None
        kernels = torch.randn(num, side**2 * CHANNELS, dtype=dtype)
        factors = [MaskFactor(torch.randn(shape, dtype=dtype), kernels, bias)]
    else:
        factors = [
            MaskFactor(torch.randn(shape, dtype=dtype), torch.randint(CHANNELS, (num,)))
            for _ in range(2)
        ]
    for x in inputs_of(factors):
        x.requires_grad_()
    targets = torch.rand(4, HEIGHT, WIDTH) > 0.5
    return factors, targets, torch.randint(4, (num,))


def inputs_of(factors):
    return [x for factor in factors for x in factor if x is not None and x.is_floating_point()]


def whole_masks(factors, counts):
    """The masks of each image, and which of all they are."""
    for image, num in enumerate(counts):
        samples = slice(sum(counts[:image]), sum(counts[:image]) + num)
        yield multiply_factors([f.of_image(image, samples) for f in factors]), samples


@pytest.fixture
def made(monkeypatch):
    """All strips of masks that are made."""
    strips = []

    def recorded(factors):
        strips.append(multiply_factors(factors))
        return strips[-1]

    monkeypatch.setattr(mask_sums, "multiply_factors", recorded)
    return strips


@pytest.mark.parametrize("memory", [0, 5000, 1 << 30])
@pytest.mark.parametrize("counts", [[4], [2, 0, 3], [0, 0]])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_whole_masks(kind, counts, memory):
    factors, targets, instances = make_case(kind, counts)
    for loss in LOSSES.values():
        pixel_sums, of_sums = SUM_FORMS[loss]
        sums = sum_masks(factors, counts, targets, instances, pixel_sums, memory=memory)
        found = of_sums(sums, HEIGHT * WIDTH)
        expected = torch.cat(
            [loss(masks, targets[instances[i]]) for masks, i in whole_masks(factors, counts)]
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        pairs = [torch.autograd.grad(x.sum(), inputs_of(factors)) for x in (found, expected)]
        for ours, whole in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("memory", "heights"), [(0, [1] * 22), (1 << 20, [11, 11]), (11000, [4, 4, 3, 7, 4])]
)
def test_memory_decides_the_strips(memory, heights, made):
    factors, targets, instances = make_case("1x1", [4, 2])
    with torch.no_grad():
        sum_masks(factors, [4, 2], targets, instances, dice_sums, memory=memory)
    assert [masks.shape[1] for masks in made] == heights


@pytest.fixture
def case():
    """Of two images with three and two masks."""
    return make_case("1x1", [3, 2])


def sums_of(case, factors=None):
    factors, targets, instances = (factors or case[0], *case[1:])
    return sum_masks(factors, [3, 2], targets, instances, dice_sums, memory=SMALL)


def test_channels_last_maps(case):
    factors = case[0]
    maps = factors[0].maps.detach().contiguous(memory_format=torch.channels_last)
    other = [factors[0]._replace(maps=maps.requires_grad_())]
    sums = [sums_of(case, which) for which in (factors, other)]
    grads = [
        torch.autograd.grad(found.sum(), which[0].maps)[0]
        for found, which in zip(sums, (factors, other), strict=True)
    ]
    torch.testing.assert_close(*sums)
    torch.testing.assert_close(*grads, check_stride=False)
    assert grads[1].is_contiguous(memory_format=torch.channels_last)


def test_only_what_wants_a_gradient_gets_one(case):
    (factor,) = case[0]
    factor.maps.requires_grad_(False)
    sums_of(case).sum().backward()
    assert factor.maps.grad is None
    assert factor.kernels.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_makes_the_masks_of_the_autocast_forward(case, dtype, made):
    with torch.autocast("cpu", dtype):
        sums = sums_of(case)
    assert sums.dtype == torch.float32
    sums.sum().backward()
    assert {masks.dtype for masks in made} == {dtype}
    assert all(x.grad.dtype == torch.float32 for x in inputs_of(case[0]))


def test_nothing_is_kept_after_the_backward_pass(case):
    """Losses are kept for the log over the next step; the maps must not be."""
    maps = case[0][0].maps * 2
    loss = sums_of(case, [case[0][0]._replace(maps=maps)]).sum()
    alive = weakref.ref(maps)
    loss.backward()
    del maps
    gc.collect()
    assert alive() is None


def test_memory_is_less_than_half_of_whole_masks():
    shape, num = (1, 32, 128, 160), 150
    factors = [MaskFactor(torch.randn(shape, requires_grad=True), torch.randn(num, 32))]
    targets, instances = torch.rand(2, *shape[2:]) > 0.5, torch.arange(num) % 2

    def run(sums):
        return torch.autograd.grad(dice_of_sums(sums).sum(), factors[0].maps)

    def ours():
        run(sum_masks(factors, [num], targets, instances, dice_sums, memory=4 << 20))

    def whole():
        ((masks, _),) = whole_masks(factors, [num])
        run(dice_sums(masks, targets[instances]))

    ours()
    peaks = [peak_memory(f, CPU) for f in (ours, whole)]
    if None in peaks:
        pytest.skip("the peak memory is unavailable")
    mask_bytes = 4 * num * shape[2] * shape[3]
    assert peaks[1] > 2 * mask_bytes  # whole masks are what is measured
    assert peaks[0] < peaks[1] / 2
