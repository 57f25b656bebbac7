"""Masks in their boxes: the masks come back, also moved, thinned out, resized and encoded."""

import cv2
import numpy as np
import pytest
import torch

from solo_d2.ops.mask_crops import crops_of, join_crops, stack_masks
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.rle import encode_masks

SIZE = 31, 45


def blobs(num=5):
    """Discs of all sizes; the second has no pixel, the third reaches over the border."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    discs = [(8, 9, 6), (0, 0, -1), (44, 30, 12), (20, 15, 3), (22, 15, 60)]
    masks = [(x - cx) ** 2 + (y - cy) ** 2 <= r * abs(r) for cx, cy, r in discs[:num]]
    return torch.tensor(np.array(masks).reshape(-1, *SIZE))


@pytest.mark.parametrize("num", [0, 1, 5])
def test_the_masks_come_back(num):
    masks = blobs(num)
    crops = crops_of(masks)
    assert crops.shape == masks.shape
    assert torch.equal(crops.whole(), masks)
    for step in (2, 7):
        assert torch.equal(crops.whole(step), masks[:, ::step, ::step])
    assert torch.equal(crops.boxes(), mask_boxes(masks))
    assert encode_masks(crops) == encode_masks(masks)
    moved = crops.moved(7, 3, (40, 60)).whole()
    assert torch.equal(moved[:, 3:34, 7:52], masks)
    assert moved.sum() == masks.sum()
    order = list(range(num))[::-1]
    on_top = stack_masks(masks, mask_boxes(masks), order)
    assert torch.equal(stack_masks(crops, crops.boxes(), order), on_top)
    joined = join_crops([crops, crops[:0], crops], SIZE, crops.device)
    assert torch.equal(joined.whole(), torch.cat([masks, masks]))


@pytest.mark.parametrize("size", [(62, 90), (50, 70), (20, 33), (31, 45)])
@pytest.mark.parametrize("smooth", [True, False])
def test_resizing_is_that_of_whole_masks(size, smooth):
    found = crops_of(blobs()).resized(size, smooth=smooth).whole()
    way = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
    expected = [
        cv2.resize(mask.astype(np.float32), size[::-1], interpolation=way) > 0.5
        for mask in blobs().numpy()
    ]
    differing = (found.numpy() != np.array(expected)).sum(axis=(1, 2))
    # Values of exactly a half are rounded either way.
    assert (differing <= 0.02 * size[0] * size[1]).all()
    assert not found[1].any()
