"""Run-length encoding, byte for byte against pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.rle import encode_masks, run_lengths

coco = pytest.importorskip("pycocotools.mask")


def by_pycocotools(masks):
    return [
        coco.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
        for mask in masks.numpy()
    ]


@given(
    num=st.integers(0, 4),
    size=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    density=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_noise(num, size, density, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(num, *size, generator=generator) < density
    assert encode_masks(masks) == by_pycocotools(masks)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (0, 3), (3, 0), (701, 903)])
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full(size, value):
    masks = torch.full((3, *size), value)
    assert encode_masks(masks) == by_pycocotools(masks)


def test_every_single_pixel_and_every_hole():
    pixels = torch.eye(35).bool().view(35, 5, 7)
    assert encode_masks(pixels) == by_pycocotools(pixels)
    assert encode_masks(~pixels) == by_pycocotools(~pixels)


def test_strided_masks():
    masks = torch.rand(6, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.4
    for view in (masks.transpose(1, 2), masks[::2, ::3, 1::2], masks.expand(6, 20, 30)[:, 5:]):
        assert encode_masks(view) == by_pycocotools(view)


def test_runs_by_hand():
    masks = torch.tensor([[[0, 1, 1], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]]).bool()
    counts, num_runs = run_lengths(masks)
    assert counts.tolist() == [2, 3, 1] + [0, 1, 4, 1]
    assert num_runs.tolist() == [3, 4]
