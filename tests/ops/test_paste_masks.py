"""Final masks: all backends against the two resizes by definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.paste_masks import new_masks, paste_masks, resize_axis
from tests.ops import backends
from tests.ops.backends import to_backend

# What float32 may do to a value next to the threshold.
ROUNDING = 1e-5


def blobs(num, height, width, seed=0):
    """Soft masks with an empty one, a full one, and one that has nothing above one half."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(num, 1, height, width, generator=generator)
    probs = (F.avg_pool2d(noise, 3, stride=1, padding=1)[:, 0] * 2 - 0.3).clamp(0, 1)
    for mask, value in zip(probs, (0.0, 1.0, 0.4), strict=False):
        mask.fill_(value)
    return probs


def resized(probs, stride, image_size, output_size):
    size = (probs.shape[1] * stride, probs.shape[2] * stride)
    big = F.interpolate(probs[None].double(), size=size, mode="bilinear", align_corners=False)[
        :, :, : image_size[0], : image_size[1]
    ]
    return F.interpolate(big, size=output_size, mode="bilinear", align_corners=False)[0]


def check(probs, stride, image_size, output_size, thresh=0.5, backend="tiled"):
    (given,) = to_backend(backend, probs)
    out = new_masks(len(probs), output_size, given.device, backend=backend)
    boxes = paste_masks(
        given, stride=stride, image_size=image_size, thresh=thresh, out=out, backend=backend
    )
    soft = resized(probs, stride, image_size, output_size)
    wrong = out.cpu() != (soft > thresh)
    assert not wrong[(soft - thresh).abs() > ROUNDING].any()
    assert torch.equal(boxes, mask_boxes(out))


@backends.ALL
@pytest.mark.parametrize(
    ("stride", "image_size", "output_size", "thresh"),
    [
        (4, (40, 50), (40, 50), 0.5),
        (4, (40, 50), (42, 55), 0.5),
        (4, (48, 64), (17, 31), 0.5),
        (4, (37, 41), (3, 2), 0.5),  # skips mask pixels
        (8, (90, 127), (20, 130), 0.5),
        (2, (23, 31), (24, 30), 0.5),
        (1, (12, 16), (30, 7), 0.5),
        (4, (1, 1), (1, 1), 0.5),
        *((4, (26, 49), (31, 60), thresh) for thresh in (0, 0.3, 1)),
    ],
)
def test_pasting_equals_the_two_resizes(stride, image_size, output_size, thresh, backend):
    check(blobs(4, 12, 16), stride, image_size, output_size, thresh, backend)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.sampled_from([1, 2, 4, 8]),
    cut=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    output_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    thresh=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_sizes(size, stride, cut, output_size, thresh, seed):
    image_size = tuple(max(1, int(c * s * stride)) for c, s in zip(cut, size, strict=True))
    check(blobs(4, *size, seed), stride, image_size, output_size, thresh)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (9, 4), (1000, 1000)])
def test_blocks_change_nothing(monkeypatch, rows, columns):
    monkeypatch.setattr("solo_d2.ops.paste_masks.ROWS", rows)
    monkeypatch.setattr("solo_d2.ops.paste_masks.COLUMNS", columns)
    check(blobs(5, 12, 16), 4, (47, 60), (33, 44))


@pytest.mark.parametrize("threads", [1, 2])
def test_half_precision_under_autocast(threads):
    masks, before = blobs(5, 12, 16).bfloat16(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = new_masks(5, (33, 44), torch.device("cpu"))
            paste_masks(masks, stride=4, image_size=(47, 60), thresh=0.5, out=found)
    finally:
        torch.set_num_threads(before)
    expected = new_masks(5, (33, 44), torch.device("cpu"))
    paste_masks(masks.float(), stride=4, image_size=(47, 60), thresh=0.5, out=expected)
    assert torch.equal(found, expected)


def test_chunks_of_the_reference_change_nothing(monkeypatch):
    monkeypatch.setattr("solo_d2.ops.paste_masks.CHUNK_ELEMENTS", 1)
    check(blobs(5, 12, 16), 4, (47, 60), (33, 44), backend="torch")


def test_only_what_can_be_set_is_touched():
    probs = torch.zeros(1, 12, 16)
    probs[0, 3:6, 4:9] = 1
    axis = resize_axis(12, 4, 48, 48)
    ((start, stop),) = axis.reached(probs.amax(dim=2) > 0.5)
    set_rows = resized(probs, 4, (48, 64), (48, 64)).amax(dim=2)[0] > 0.5
    assert not set_rows[:start].any()
    assert not set_rows[stop:].any()
    assert stop - start <= 4 * (3 + 2)


@backends.ALL
@pytest.mark.parametrize("shape", [(0, 20, 30), (2, 0, 30), (2, 20, 0)])
def test_nothing_to_paste(shape, backend):
    out = new_masks(shape[0], shape[1:], torch.device("cpu"), backend=backend)
    probs = torch.rand(shape[0], 5, 8)
    boxes = paste_masks(probs, stride=4, image_size=(20, 30), thresh=0.5, out=out, backend=backend)
    assert boxes.shape == (shape[0], 4)
    assert not boxes.any()


@backends.ALL
def test_strided_masks(backend):
    check(blobs(6, 12, 20)[::2].transpose(1, 2), 4, (75, 47), (40, 30), backend=backend)


@backends.ON_CPU
def test_strided_results(backend):
    whole = torch.zeros(4, 30, 40, dtype=torch.bool)
    parts = torch.zeros(4, 60, 80, dtype=torch.bool)[:, ::2, 1::2]
    sizes = {"stride": 4, "image_size": (47, 60), "thresh": 0.5}
    for out in (whole, parts):
        paste_masks(blobs(4, 12, 16), **sizes, out=out, backend=backend)
    assert torch.equal(parts, whole)
