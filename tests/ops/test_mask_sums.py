"""Strips of masks give the sums and gradients of whole masks, in less memory."""

import gc
import weakref

import pytest
import torch

from solo_d2.losses import SUM_FORMS, bce_loss, dice_loss, mask_focal_loss
from solo_d2.ops.dynamic_conv import dynamic_conv
from solo_d2.ops.mask_sums import BatchMasks, sum_masks
from tools.benchmarks.common import peak_memory

CPU = torch.device("cpu")
HEIGHT, WIDTH, CHANNELS = 11, 7, 3
LOSSES = {"dice": dice_loss, "bce": bce_loss, "focal": mask_focal_loss}
dice_sums, dice_of_sums = SUM_FORMS[dice_loss]


def by_kernels(maps, params):
    return dynamic_conv(params[0], maps[0]).sigmoid()


def by_columns_and_rows(maps, params):
    return maps[0][params[0]].sigmoid() * maps[1][params[1]].sigmoid()


def make_case(kind, counts, dtype=torch.float32):
    """Masks of images, with targets and their instances; all inputs want gradients."""
    torch.manual_seed(0)
    shape = (len(counts), CHANNELS, HEIGHT, WIDTH)
    num, radius, make = sum(counts), 0, by_kernels
    maps = [torch.randn(shape, dtype=dtype)]
    if kind == "products":
        make = by_columns_and_rows
        maps.append(torch.randn(shape, dtype=dtype))
        params = [torch.randint(CHANNELS, (num,)) for _ in range(2)]
    else:
        side = {"1x1": 1, "3x3": 3}[kind]
        radius = side // 2
        params = [torch.randn(num, side**2 * CHANNELS, dtype=dtype)]
    for x in (*maps, *params):
        x.requires_grad_(x.is_floating_point())
    masks = BatchMasks(maps, params, make, counts, radius)
    targets = torch.rand(4, HEIGHT, WIDTH) > 0.5
    return masks, targets, torch.randint(4, (num,))


def inputs_of(masks):
    return [x for x in (*masks.maps, *masks.params) if x.requires_grad]


@pytest.mark.parametrize("memory", [0, 5000, 1 << 30])
@pytest.mark.parametrize("counts", [[4], [2, 0, 3], [0, 1], [0, 0]])
@pytest.mark.parametrize("kind", ["1x1", "3x3", "products"])
def test_equals_whole_masks(kind, counts, memory):
    masks, targets, instances = make_case(kind, counts)
    for loss in LOSSES.values():
        pixel_sums, of_sums = SUM_FORMS[loss]
        sums = sum_masks(masks, targets, instances, pixel_sums, memory=memory)
        found = of_sums(sums, HEIGHT * WIDTH)
        expected = torch.cat(
            [loss(made, targets[instances[samples]]) for made, samples in masks.whole_masks()]
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        pairs = [torch.autograd.grad(x.sum(), inputs_of(masks)) for x in (found, expected)]
        for ours, whole in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


def test_memory_decides_the_strips():
    masks, targets, instances = make_case("1x1", [4, 2])
    heights = []

    def make(maps, params):
        heights.append(maps[0].shape[1])
        return by_kernels(maps, params)

    masks = BatchMasks(masks.maps, masks.params, make, masks.num_per_image)
    for memory, expected in ((0, [1] * 22), (1 << 20, [11, 11]), (11000, [4, 4, 3, 7, 4])):
        heights.clear()
        with torch.no_grad():
            sum_masks(masks, targets, instances, dice_sums, memory=memory)
        assert heights == expected


@pytest.mark.parametrize("kind", ["1x1", "3x3", "products"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_differences(kind, loss):
    masks, targets, instances = make_case(kind, [2, 1], torch.float64)

    def losses(*inputs):
        maps = inputs[: len(masks.maps)]
        params = inputs[len(maps) :] or masks.params
        case = BatchMasks(maps, params, masks.make, masks.num_per_image, masks.radius)
        pixel_sums, of_sums = SUM_FORMS[LOSSES[loss]]
        return of_sums(sum_masks(case, targets, instances, pixel_sums, memory=4000), HEIGHT * WIDTH)

    assert torch.autograd.gradcheck(losses, inputs_of(masks), fast_mode=True)


def test_channels_last_maps():
    masks, targets, instances = make_case("1x1", [3, 2])
    feature = masks.maps[0].detach().contiguous(memory_format=torch.channels_last)
    other = BatchMasks([feature.requires_grad_()], masks.params, by_kernels, [3, 2])
    sums, grads = [], []
    for case in (masks, other):
        sums.append(sum_masks(case, targets, instances, dice_sums, memory=4000))
        grads.extend(torch.autograd.grad(sums[-1].sum(), case.maps[0]))
    torch.testing.assert_close(*sums)
    torch.testing.assert_close(*grads, check_stride=False)
    assert grads[1].is_contiguous(memory_format=torch.channels_last)


def test_only_what_wants_a_gradient_gets_one():
    masks, targets, instances = make_case("1x1", [3, 2])
    masks.maps[0].requires_grad_(False)
    sum_masks(masks, targets, instances, dice_sums, memory=4000).sum().backward()
    assert masks.maps[0].grad is None
    assert masks.params[0].grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_makes_the_masks_of_the_autocast_forward(dtype):
    masks, targets, instances = make_case("1x1", [3, 2])
    dtypes = []

    def make(maps, params):
        made = by_kernels(maps, params)
        dtypes.append(made.dtype)
        return made

    masks = BatchMasks(masks.maps, masks.params, make, masks.num_per_image)
    with torch.autocast("cpu", dtype):
        sums = sum_masks(masks, targets, instances, dice_sums, memory=4000)
    assert sums.dtype == torch.float32
    sums.sum().backward()
    assert set(dtypes) == {dtype}
    assert all(x.grad.dtype == torch.float32 for x in inputs_of(masks))


def test_nothing_is_kept_after_the_backward_pass():
    """Losses are kept for the log over the next step; the maps must not be."""
    masks, targets, instances = make_case("1x1", [3, 2])
    feature = masks.maps[0] * 2
    masks = BatchMasks([feature], masks.params, by_kernels, [3, 2])
    loss = sum_masks(masks, targets, instances, dice_sums, memory=4000).sum()
    alive = weakref.ref(feature)
    loss.backward()
    del masks, feature
    gc.collect()
    assert alive() is None


def test_memory_is_less_than_half_of_whole_masks():
    shape, num = (1, 32, 128, 160), 150
    feature = torch.randn(shape).requires_grad_()
    kernels = torch.randn(num, 32).requires_grad_()
    targets, instances = torch.rand(2, *shape[2:]) > 0.5, torch.arange(num) % 2
    masks = BatchMasks([feature], [kernels], by_kernels, [num])

    def run(sums):
        return torch.autograd.grad(dice_of_sums(sums, 1).sum(), [feature, kernels])

    def ours():
        run(sum_masks(masks, targets, instances, dice_sums, memory=4 << 20))

    def whole():
        run(torch.cat([dice_sums(m, targets[instances[i]]) for m, i in masks.whole_masks()]))

    ours()
    peaks = [peak_memory(f, CPU) for f in (ours, whole)]
    if None in peaks:
        pytest.skip("the system tells no peak memory")
    mask_bytes = 4 * num * shape[2] * shape[3]
    assert peaks[1] > 2 * mask_bytes  # whole masks are what is measured
    assert peaks[0] < peaks[1] / 2
