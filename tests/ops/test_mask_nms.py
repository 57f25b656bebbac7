"""Matrix NMS and hard NMS: published values, the slow reference, and the cases that go wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.inference import NMS, build_nms
from solo_d2.ops.hard_nms import hard_nms
from solo_d2.ops.mask_iou import mask_iou
from solo_d2.ops.matrix_nms import matrix_nms
from tests.golden import load_golden
from tests.reference import nms as reference

GOLDEN = load_golden("matrix_nms")
VARIANTS = {
    "gaussian": {"kernel": "gaussian", "sigma": 2.0},
    "gaussian_sigma0.5": {"kernel": "gaussian", "sigma": 0.5},
    "linear": {"kernel": "linear"},
}
PARAMS = {"kernel": "gaussian", "sigma": 2.0, "thresh": 0.5}


def golden_case(case):
    return [GOLDEN[f"{case}_{name}"] for name in ("masks", "labels", "scores")]


def random_case(num, seed, height=13, width=7, classes=2):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(num, 2, generator=generator) * torch.tensor([height, width])
    radius = torch.rand(num, 1, 1, generator=generator) * height / 2
    y = (torch.arange(height) - centers[:, :1]).abs()[:, :, None]
    x = (torch.arange(width) - centers[:, 1:]).abs()[:, None, :]
    masks = y + x < radius
    labels = torch.randint(classes, (num,), generator=generator)
    scores = torch.rand(num, generator=generator).sort(descending=True).values
    return masks, labels, scores


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["main", "n1", "same2", "diff2", "chain3"])
def test_matrix_nms_equals_published(case, variant):
    result = matrix_nms(*golden_case(case), **VARIANTS[variant])
    torch.testing.assert_close(result, GOLDEN[f"{case}_{variant}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrix_nms_is_finite_where_published_is_nan(variant):
    masks, labels, scores = golden_case("empty2")
    assert torch.equal(matrix_nms(masks, labels, scores, **VARIANTS[variant]), scores)
    linear = matrix_nms(*golden_case("same3"), kernel="linear")
    assert GOLDEN["same3_linear"].isnan().any()
    assert linear.tolist() == [pytest.approx(0.9), 0.0, 0.0]


@pytest.mark.parametrize("thresh", [0.5, 0.3])
@pytest.mark.parametrize("case", ["main", "n1", "same2", "same3", "diff2", "chain3", "empty2"])
def test_hard_nms_equals_published(case, thresh):
    kept = hard_nms(*golden_case(case), thresh=thresh) > 0
    assert torch.equal(kept, GOLDEN[f"{case}_mask_nms_keep_thr{thresh}"])


def test_matrix_nms_by_hand():
    masks = torch.zeros(3, 1, 4, dtype=torch.bool)
    masks[0, 0, :2] = masks[1, 0, 1:3] = masks[2, 0, 2:] = True
    scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.zeros(3, dtype=torch.int64)
    # Neighbours share 1 of 3 pixels. The second is decayed by 2/3; the third by 2/3 too, but the
    # second, itself decayed by 2/3, takes that back.
    result = matrix_nms(masks, labels, scores, kernel="linear")
    torch.testing.assert_close(result, torch.tensor([0.9, 0.8 * 2 / 3, 0.7]))


@given(num=st.integers(0, 30), seed=st.integers(0, 999), classes=st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_equals_slow_loops(num, seed, classes):
    masks, labels, scores = random_case(num, seed, classes=classes)
    arrays = [x.numpy() for x in (masks, labels, scores)]
    for kernel in ("gaussian", "linear"):
        expected = reference.matrix_nms(*arrays, kernel=kernel)
        result = matrix_nms(masks, labels, scores, kernel=kernel)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-6)
    expected = reference.hard_nms(*arrays)
    np.testing.assert_allclose(hard_nms(masks, labels, scores).numpy(), expected)


@pytest.mark.parametrize("name", NMS)
def test_scores_never_rise_and_input_is_not_changed(name):
    masks, labels, scores = random_case(50, seed=1)
    before = scores.clone()
    result = build_nms(name, PARAMS)(masks, labels, scores)
    assert torch.equal(scores, before)
    assert (result <= scores).all()
    assert (result >= 0).all()


@pytest.mark.parametrize("name", NMS)
def test_no_masks(name):
    nms = build_nms(name, PARAMS)
    result = nms(torch.zeros(0, 5, 5, dtype=torch.bool), torch.zeros(0).long(), torch.zeros(0))
    assert result.shape == (0,)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("name", NMS)
def test_not_contiguous(name):
    masks, labels, scores = random_case(9, seed=2)
    wide = masks.repeat_interleave(2, dim=2)[:, :, ::2]
    nms = build_nms(name, PARAMS)
    assert torch.equal(nms(wide, labels, scores), nms(masks, labels, scores))


def test_iou_is_exact_under_autocast():
    masks = torch.ones(2, 300, 400, dtype=torch.bool)
    masks[1, 0, 0] = False  # 120,000 pixels: bfloat16 can't tell the two apart
    with torch.autocast("cpu", dtype=torch.bfloat16):
        iou = mask_iou(masks)
    assert iou.dtype == torch.float32
    assert iou[0, 1].item() == pytest.approx(119_999 / 120_000, abs=1e-7)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="'gaussian' or 'linear'"):
        matrix_nms(*golden_case("main"), kernel="cubic")
    with pytest.raises(ValueError, match="hard, matrix"):
        build_nms("none", PARAMS)
