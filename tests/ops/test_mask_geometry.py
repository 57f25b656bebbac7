import pytest
import torch
from torch.nn import functional as F

from solo_d2.ops.coords import append_coords
from solo_d2.ops.mask_factors import dynamic_conv
from solo_d2.ops.mask_geometry import mask_boxes, mask_centers, shrink_masks


def random_masks(num, height, width, seed=0):
    return torch.rand(num, height, width, generator=torch.Generator().manual_seed(seed)) > 0.6


def test_centers_and_areas_equal_those_of_the_pixels():
    masks = random_masks(4, 9, 11)
    masks[2] = False
    centers, areas = mask_centers(masks)
    for mask, center, area in zip(masks, centers, areas, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        assert area == len(y)
        expected = [x.double().mean(), y.double().mean()] if len(y) else [0, 0]
        torch.testing.assert_close(center, torch.tensor(expected).float())


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 300, 16), (1, 2, 2100), (0, 4, 8), (3, 0, 5)])
def test_areas_of_many_lines_and_of_none(shape):
    """Counts go beyond a byte, which pixels are added up in."""
    masks = torch.ones(shape, dtype=torch.bool)
    centers, areas = mask_centers(masks)
    assert areas.tolist() == [shape[1] * shape[2]] * shape[0]
    if shape[1]:
        middle = torch.tensor([[(shape[2] - 1) / 2, (shape[1] - 1) / 2]])
        assert torch.equal(centers, middle.expand(shape[0], 2))


@pytest.mark.parametrize("view", ["transposed", "cropped", "shifted"])
def test_centers_of_views(view):
    masks = random_masks(3, 24, 32)
    part = {
        "transposed": masks.transpose(1, 2),
        "cropped": masks[:, 3:20, 5:29],
        "shifted": masks.flatten()[3 : 3 + 2 * 16 * 16].view(2, 16, 16),
    }[view]
    for found, expected in zip(mask_centers(part), mask_centers(part.clone()), strict=True):
        assert torch.equal(found, expected)
    assert mask_centers(part)[1].tolist() == part.flatten(1).sum(dim=1).tolist()


def test_boxes_are_tight_and_exclusive():
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    masks[1, 9, 11] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 8, 5], [11, 9, 12, 10], [0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 5, 5), (3, 0, 5), (2, 1, 1)])
def test_boxes_of_empty_shapes(shape):
    boxes = mask_boxes(torch.zeros(shape, dtype=torch.bool))
    assert boxes.shape == (shape[0], 4)
    assert not boxes.any()


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_shrinking_is_bilinear_rounded_half_up(stride):
    masks = random_masks(3, 64, 96)
    size = (64 // stride, 96 // stride)
    soft = F.interpolate(masks[None].double(), size=size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(shrink_masks(masks, stride, size), soft >= 0.5)


@pytest.mark.parametrize("height", [61, 62, 63, 64])
def test_shrinking_pads_with_nothing(height):
    masks = random_masks(2, height, 90)
    padded = F.pad(masks, (0, 96 - 90, 0, 80 - height))
    expected = shrink_masks(padded, 4, (20, 24))
    assert torch.equal(shrink_masks(masks, 4, (20, 24)), expected)


def test_shrinking_by_one_pads_and_odd_factors_are_refused():
    masks = random_masks(2, 5, 6)
    assert torch.equal(shrink_masks(masks, 1, (8, 8))[:, :5, :6], masks)
    with pytest.raises(ValueError, match="even factor, not by 3"):
        shrink_masks(masks, 3, (2, 2))


def test_coords_run_from_minus_one_to_one():
    result = append_coords(torch.zeros(2, 3, 4, 5))
    assert result.shape == (2, 5, 4, 5)
    assert result[1, 3, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    torch.testing.assert_close(result[0, 4, :, 1], torch.linspace(-1, 1, 4))


@pytest.mark.parametrize("side", [1, 3])
def test_dynamic_conv_equals_a_loop_over_kernels(side):
    feature = torch.randn(6, 9, 8)
    kernels = torch.randn(5, side * side * 6)
    result = dynamic_conv(kernels, feature)
    for kernel, logits in zip(kernels, result, strict=True):
        weight = kernel.view(1, 6, side, side)
        expected = F.conv2d(feature[None], weight, padding=side // 2)[0, 0]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [1, 3])
def test_dynamic_conv_of_no_kernels_keeps_the_graph(side):
    feature = torch.randn(6, 9, 8, requires_grad=True)
    kernels = torch.randn(4, side * side * 6, requires_grad=True)
    dynamic_conv(kernels[:0], feature).sum().backward()
    assert not feature.grad.any()
    assert not kernels.grad.any()
