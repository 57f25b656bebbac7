"""Overlaps by Triton: the same integers as the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.mask_iou import MaskRows, mask_overlaps
from tests.ops.backends import DEVICE
from tests.ops.nms_cases import random_case

pytest.importorskip("triton")


def check(masks, groups):
    expected = mask_overlaps(masks, groups, backend="torch").triu()
    result = mask_overlaps(masks.to(DEVICE), groups.to(DEVICE), backend="triton")
    assert result.dtype == torch.int32
    assert torch.equal(result.cpu().triu(), expected)


@pytest.mark.parametrize(
    ("num", "size", "classes"),
    [
        *((1, (7, 13), 3), (17, (7, 13), 3), (130, (33, 35), 3), (1, (1, 1), 3)),
        (17, (50, 83), 3),
        *(pytest.param(500, (200, 304), n, marks=pytest.mark.gpu) for n in (1, 10, 80)),
    ],
)
def test_odd_and_usual_sizes(num, size, classes):
    check(*random_case(num, num, *size, classes)[:2])


@given(
    num=st.integers(0, 80),
    seed=st.integers(0, 9999),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    classes=st.integers(1, 5),
)
@settings(deadline=None, max_examples=5)
def test_any_size(num, seed, height, width, classes):
    masks, groups, _ = random_case(num, seed, height, width, classes)
    check(masks, groups)


def test_groups_and_rows_apart_are_skipped_and_full_ones_counted():
    masks = torch.zeros(70, 40, 16, dtype=torch.bool)
    masks[:30, :3] = True
    masks[30:60, 30:] = True
    masks[60:] = True
    groups = torch.arange(70) % 2 * 1000
    check(masks, torch.zeros(70, dtype=torch.int64))
    check(masks, groups)


def test_views_and_no_pixels():
    masks, groups, _ = random_case(9, 3, 12, 20)
    check(masks.transpose(1, 2), groups)
    check(masks[:, :0], groups)


@pytest.mark.parametrize("num_pixels", [15, 16, 17])
def test_rows_that_do_not_begin_at_a_word(num_pixels):
    """Neither an odd number of pixels nor an odd address counts pixels of a neighbour."""
    masks = torch.ones(40 * num_pixels + 1, dtype=torch.bool)[1:].view(40, 1, num_pixels)
    check(masks, torch.arange(40) % 2)


def spans_of(masks, margin):
    """A span about the pixels of each mask."""
    spans = []
    for mask in masks.flatten(1):
        reached = mask.nonzero()[:, 0].tolist() or [mask.numel(), -1]
        more = margin if reached[-1] >= 0 else 0
        spans.append([max(reached[0] - more, 0), reached[-1] + more])
    return torch.tensor(spans, dtype=torch.int32)


@pytest.mark.parametrize("margin", [None, 0, 40])
@pytest.mark.parametrize(("num", "chosen"), [(5, 9), (200, 130)])
def test_chosen_rows(num, chosen, margin):
    masks, _, _ = random_case(num, 1, 33, 35)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(num, (chosen,), generator=generator)
    groups = torch.randint(3, (chosen,), generator=generator)
    spans = None if margin is None else spans_of(masks, margin).to(DEVICE)
    rows = MaskRows(index.to(DEVICE), spans)
    result = mask_overlaps(masks.to(DEVICE), groups.to(DEVICE), rows=rows, backend="triton")
    expected = mask_overlaps(masks[index], groups, backend="torch")
    assert torch.equal(result.cpu().triu(), expected.triu())


@pytest.mark.gpu
def test_more_pixels_than_float32_counts():
    masks = torch.ones(3, 4098, 4098, dtype=torch.bool)
    masks[1, 17, 1] = masks[2, 0, 0] = False
    check(masks, torch.zeros(3, dtype=torch.int64))
