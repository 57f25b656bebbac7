"""Masks on top of each other."""

import pytest
import torch

from solo_d2.ops.label_map import stack_masks
from solo_d2.ops.mask_geometry import mask_boxes


def by_definition(masks, order):
    result = torch.zeros(masks.shape[1:], dtype=torch.int64)
    for number, index in enumerate(order, start=1):
        result[masks[index]] = number
    return result


@pytest.mark.parametrize("num", [0, 1, 5, 255, 256, 300])
def test_the_last_one_is_on_top(num):
    generator = torch.Generator().manual_seed(num)
    masks = torch.rand(num, 9, 14, generator=generator) > 0.8
    masks[: num // 3] = False
    order = torch.randperm(num, generator=generator).tolist()
    found = stack_masks(masks, mask_boxes(masks), order)
    assert found.dtype == (torch.uint8 if num <= 255 else torch.int32)
    assert torch.equal(found.long(), by_definition(masks, order))


def test_some_masks_and_strided_ones():
    masks = (torch.rand(4, 10, 24, generator=torch.Generator().manual_seed(0)) > 0.5)[:, ::2, ::3]
    found = stack_masks(masks, mask_boxes(masks.contiguous()), [2, 0])
    assert torch.equal(found.long(), by_definition(masks, [2, 0]))
