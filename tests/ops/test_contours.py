"""Contours: OpenCV's findContours is the oracle; regions: what was enclosed comes back."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.contours import contour_masks, fill_contours

THRESH = 0.3


def opencv_contours(masks, mode=cv2.RETR_LIST):
    """The same by OpenCV, a mask at a time."""
    result = np.zeros(masks.shape, dtype=bool)
    for mask, contour in zip(masks.numpy(), result, strict=True):
        for points in cv2.findContours(mask.astype(np.uint8), mode, cv2.CHAIN_APPROX_NONE)[0]:
            contour[points[:, 0, 1], points[:, 0, 0]] = True
    return torch.from_numpy(result)


def disk(radius, size=64, center=None):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    row, column = center or (size // 2, size // 2)
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    share=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9, 1.0]),
    block=st.integers(1, 4),
)
def test_equals_opencv(seed, size, share, block):
    noise = np.random.default_rng(seed).random((3, *size)) < share
    masks = torch.from_numpy(noise.repeat(block, axis=1).repeat(block, axis=2))
    # Also a frame and a hole alone: borders of the image and of the inside.
    frames = torch.ones(2, *size, dtype=torch.bool)
    frames[:, 1:-1, 1:-1] = False
    masks = torch.cat([masks[:, : size[0], : size[1]], frames[:1], ~frames[1:]])
    contours = contour_masks(masks)
    assert torch.equal(contours, opencv_contours(masks))
    assert torch.equal(contours, opencv_contours(masks, cv2.RETR_CCOMP))


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_no_masks_or_no_pixels(shape):
    assert contour_masks(torch.zeros(shape, dtype=torch.bool)).shape == shape
    assert fill_contours(torch.zeros(shape), THRESH).shape == shape


def test_input_is_left_alone_and_may_be_strided():
    masks = torch.rand(4, 12, 10) < 0.6
    before = masks.clone()
    strided = contour_masks(masks.transpose(1, 2)[::2])
    assert torch.equal(masks, before)
    assert torch.equal(strided, contour_masks(masks[::2]).transpose(1, 2))


@pytest.mark.gpu
def test_same_on_gpu():
    masks = torch.rand(5, 40, 33) < 0.6
    assert torch.equal(contour_masks(masks.cuda()).cpu(), contour_masks(masks))
    probs = contour_masks(masks) * 0.8
    assert torch.equal(fill_contours(probs.cuda(), THRESH).cpu(), fill_contours(probs, THRESH))


@pytest.mark.parametrize("width", [1, 3])
def test_region_of_its_contour_comes_back(width):
    ring = disk(26) & ~disk(15)
    masks = torch.stack(
        [
            disk(20),
            disk(20, center=(2, 60)),  # cut by the border of the image
            ring,
            ring | disk(5),  # an island in a hole
            disk(8, center=(10, 10)) | disk(9, center=(45, 40)),  # two parts
            torch.zeros(64, 64, dtype=torch.bool),
            torch.ones(64, 64, dtype=torch.bool),
        ]
    )
    inner = masks
    for _ in range(width):
        inner = inner & ~contour_masks(inner)
    bands = masks & ~inner
    regions = fill_contours(bands * 0.6, THRESH)
    assert torch.equal(regions > THRESH, masks)


def test_open_contour_stays_as_it_is():
    band = contour_masks(disk(20)[None])
    band[:, 30:34, 32:] = False
    probs = band * 0.7 + 0.1
    assert torch.equal(fill_contours(probs, THRESH), probs)


def test_maskness_stays_and_outside_too():
    band = contour_masks(disk(20)[None])
    probs = torch.where(band, 0.35 + 0.6 * torch.rand(1, 64, 64), 0.2 * torch.rand(1, 64, 64))
    regions = fill_contours(probs, THRESH)
    region = regions > THRESH
    assert torch.equal(region, disk(20)[None])
    torch.testing.assert_close(regions[region].mean(), probs[band].mean())
    assert torch.equal(regions[band], probs[band])
    assert torch.equal(regions[~region], probs[~region])


@pytest.mark.parametrize("thresh", [0.1, 0.1 + 1e-7])
def test_what_is_enclosed_is_above_the_threshold_in_spite_of_rounding(thresh):
    band = contour_masks(disk(25)[None])
    probs = band * torch.nextafter(torch.tensor(thresh), torch.tensor(1.0))
    assert torch.equal(fill_contours(probs, float(torch.tensor(thresh))) > thresh, disk(25)[None])
