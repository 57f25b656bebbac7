"""Centres, boxes, downsampling and stacking of masks; coordinates."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from solo_d2.ops.coords import append_coords
from solo_d2.ops.mask_crops import stack_masks
from solo_d2.ops.mask_geometry import downsample_masks, mask_boxes, mask_centers


def random_masks(num, height, width, seed=0):
    return torch.rand(num, height, width, generator=torch.Generator().manual_seed(seed)) > 0.6


def views_of(masks):
    """Masks that lie in memory in other ways."""
    yield masks
    yield masks.transpose(1, 2)
    yield masks[:, 3:20, 5:29]
    yield masks.flatten()[3 : 3 + 2 * 16 * 16].view(2, 16, 16)


def test_centers_and_areas_equal_those_of_the_pixels():
    masks = random_masks(4, 24, 32)
    masks[2] = False
    for view in views_of(masks):
        for mask, center, area in zip(view, *mask_centers(view), strict=True):
            y, x = mask.nonzero(as_tuple=True)
            assert area == len(y)
            expected = [x.double().mean(), y.double().mean()] if len(y) else [0, 0]
            torch.testing.assert_close(center, torch.tensor(expected).float())


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 300, 16), (1, 2, 2100), (0, 4, 8), (3, 0, 5)])
def test_areas_of_many_lines_and_of_none(shape):
    """Counts go beyond a byte, which pixels are added up in; NumPy's strides of nothing are 0."""
    masks = torch.from_numpy(np.ones(shape, np.bool_))
    centers, areas = mask_centers(masks)
    assert areas.tolist() == [shape[1] * shape[2]] * shape[0]
    if shape[1]:
        middle = torch.tensor([[(shape[2] - 1) / 2, (shape[1] - 1) / 2]])
        assert torch.equal(centers, middle.expand(shape[0], 2))


def test_boxes_are_tight_and_exclusive():
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    masks[1, 9, 11] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 8, 5], [11, 9, 12, 10], [0, 0, 0, 0]]
    for shape in ((0, 5, 5), (3, 0, 5), (2, 1, 1)):
        boxes = mask_boxes(torch.zeros(shape, dtype=torch.bool))
        assert boxes.tolist() == [[0, 0, 0, 0]] * shape[0]


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_downsampling_is_bilinear_rounded_half_up(stride):
    masks = random_masks(3, 64, 96)
    size = (64 // stride, 96 // stride)
    soft = F.interpolate(masks[None].double(), size=size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(downsample_masks(masks, stride, size), soft >= 0.5)


@pytest.mark.parametrize("height", [61, 62, 63, 64])
def test_downsampling_pads_with_nothing(height):
    masks = random_masks(2, height, 90)
    padded = F.pad(masks, (0, 96 - 90, 0, 80 - height))
    expected = downsample_masks(padded, 4, (20, 24))
    assert torch.equal(downsample_masks(masks, 4, (20, 24)), expected)


def test_downsampling_by_one_pads_and_odd_factors_are_refused():
    masks = random_masks(2, 5, 6)
    assert torch.equal(downsample_masks(masks, 1, (8, 8))[:, :5, :6], masks)
    with pytest.raises(ValueError, match="even factor, not by 3"):
        downsample_masks(masks, 3, (2, 2))


def test_coords_run_from_minus_one_to_one():
    result = append_coords(torch.zeros(2, 3, 4, 5))
    assert result.shape == (2, 5, 4, 5)
    assert result[1, 3, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    torch.testing.assert_close(result[0, 4, :, 1], torch.linspace(-1, 1, 4))


@pytest.mark.parametrize("num", [0, 1, 5, 255, 256, 300])
@pytest.mark.parametrize("step", [1, 2])
def test_the_last_one_is_on_top(num, step):
    """Of all masks, or of some that are not contiguous."""
    generator = torch.Generator().manual_seed(num)
    masks = (torch.rand(num, 9, 28, generator=generator) > 0.8)[:, ::step, ::step]
    masks[: num // 3] = False
    order = torch.randperm(num, generator=generator)[::step].tolist()
    found = stack_masks(masks, mask_boxes(masks.contiguous()), order)
    expected = torch.zeros(masks.shape[1:], dtype=torch.int64)
    for number, index in enumerate(order, start=1):
        expected[masks[index]] = number
    assert found.dtype == (torch.uint8 if len(order) <= 255 else torch.int32)
    assert torch.equal(found.long(), expected)
