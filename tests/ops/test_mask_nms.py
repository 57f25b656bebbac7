"""The mask NMS: published values, slow references, properties, and the cases that go wrong."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solo_d2.inference import NMS, build_nms
from solo_d2.ops.fast_nms import fast_nms
from solo_d2.ops.hard_nms import hard_nms
from solo_d2.ops.mask_iou import MaskRows
from solo_d2.ops.matrix_nms import matrix_nms
from solo_d2.ops.soft_nms import soft_nms
from tests.ops import backends
from tests.ops.nms_cases import FAMILY, GOLDEN, VARIANTS, golden_case, random_case
from tests.reference import nms as reference

# Triton is left to tests/ops/triton: its interpreter is slow.
on_cpu = backends.ON_CPU
cases = st.builds(
    random_case,
    num=st.integers(0, 24),
    seed=st.integers(0, 9999),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    classes=st.integers(1, 4),
)
family = pytest.mark.parametrize("name", FAMILY)


@on_cpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["main", "n1", "same2", "diff2", "chain3"])
def test_matrix_nms_equals_published(case, variant, backend):
    result = matrix_nms(*golden_case(case), **VARIANTS[variant], backend=backend)
    torch.testing.assert_close(result, GOLDEN[f"{case}_{variant}"], rtol=1e-5, atol=1e-6)


@on_cpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_matrix_nms_is_finite_where_published_is_nan(variant, backend):
    masks, labels, scores = golden_case("empty2")
    result = matrix_nms(masks, labels, scores, **VARIANTS[variant], backend=backend)
    assert torch.equal(result, scores)
    linear = matrix_nms(*golden_case("same3"), kernel="linear", backend=backend)
    assert GOLDEN["same3_linear"].isnan().any()
    assert linear.tolist() == [pytest.approx(0.9), 0.0, 0.0]


@on_cpu
@pytest.mark.parametrize("thresh", [0.5, 0.3])
@pytest.mark.parametrize("case", ["main", "n1", "same2", "same3", "diff2", "chain3", "empty2"])
def test_hard_nms_equals_published(case, thresh, backend):
    kept = hard_nms(*golden_case(case), thresh=thresh, backend=backend) > 0
    assert torch.equal(kept, GOLDEN[f"{case}_mask_nms_keep_thr{thresh}"])


@family
@on_cpu
def test_chosen_rows_are_as_good_as_copies(name, backend):
    function, _, params = FAMILY[name]
    masks, _, _ = random_case(30, seed=0)
    index = torch.randint(30, (20,), generator=torch.Generator().manual_seed(1))
    _, labels, scores = random_case(20, seed=2)
    found = function(masks, labels, scores, **params, backend=backend, rows=MaskRows(index))
    assert torch.equal(found, function(masks[index], labels, scores, **params, backend=backend))


@family
@on_cpu
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_areas_that_are_known(name, backend, dtype):
    function, _, params = FAMILY[name]
    masks, labels, scores = random_case(30, seed=0)
    areas = masks.sum(dim=(1, 2)).to(dtype)
    counted = function(masks, labels, scores, **params, backend=backend)
    known = function(masks, labels, scores, **params, backend=backend, areas=areas)
    assert torch.equal(known, counted)
    larger = function(masks, labels, scores, **params, backend=backend, areas=areas * 1000)
    assert (larger >= counted).all()
    assert (larger > counted).any()


def row_of_three():
    """Three masks in a row; neighbours share 1 of 3 pixels."""
    masks = torch.zeros(3, 1, 4, dtype=torch.bool)
    masks[0, 0, :2] = masks[1, 0, 1:3] = masks[2, 0, 2:] = True
    return masks, torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7])


@on_cpu
def test_by_hand(backend):
    case = row_of_three()

    def check(result, *expected):
        torch.testing.assert_close(result, torch.tensor(expected))

    # The second is decayed by 2/3; the third by 2/3 too, but the second, itself decayed by 2/3,
    # takes that back.
    check(matrix_nms(*case, kernel="linear", backend=backend), 0.9, 0.8 * 2 / 3, 0.7)
    # The second is gone, so the third stays; but in fast NMS the removed one still removes.
    check(hard_nms(*case, thresh=0.3, backend=backend), 0.9, 0.0, 0.7)
    check(fast_nms(*case, thresh=0.3, backend=backend), 0.9, 0.0, 0.0)
    # The second falls to 0.53, so the third is taken before it, and lowers it once more.
    soft = soft_nms(*case, kernel="linear", thresh=0.3, backend=backend)
    check(soft, 0.9, 0.8 * 2 / 3 * 2 / 3, 0.7)
    at_thresh = soft_nms(*case, kernel="linear", thresh=1 / 3, backend=backend)
    check(at_thresh, *case[2].tolist())


def filled(value, *shape):
    """Masks of one class and one score, all full or all empty."""
    labels, scores = torch.zeros(shape[0], dtype=torch.int64), torch.full(shape[:1], 0.5)
    return torch.full(shape, value), labels, scores


@on_cpu
@family
@given(case=cases)
@example(case=filled(True, 5, 6, 9))
@example(case=filled(False, 5, 6, 9))
@example(case=filled(False, 0, 5, 5))
@example(case=filled(False, 2, 0, 8))
@settings(deadline=None, max_examples=10)
def test_equals_slow_loops(name, backend, case):
    function, slow, params = FAMILY[name]
    masks, labels, scores = before = [x.clone() for x in case]
    one_class = torch.zeros_like(labels)
    for agnostic, of_reference in ((False, labels), (True, one_class)):
        expected = slow(masks.numpy(), of_reference.numpy(), scores.numpy(), **params)
        result = function(*case, **params, backend=backend, class_agnostic=agnostic)
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-6)
        assert ((result >= 0) & (result <= scores)).all()
        assert torch.equal(result[:1], scores[:1])  # nothing is better than the best
    assert all(torch.equal(x, y) for x, y in zip(case, before, strict=True))


@family
@pytest.mark.parametrize(
    ("num", "size"),
    [(1, (7, 13)), (17, (100, 167)), (129, (7, 13)), (129, (100, 167)), (1200, (9, 16))],
)
def test_backends_agree(num, size, name):
    function, _, params = FAMILY[name]
    case = random_case(num, num, *size, classes=3)
    expected = function(*case, **params, backend="torch")
    result = function(*case, **params, backend="tiled")
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


@on_cpu
@family
def test_not_contiguous_half_and_autocast(name, backend):
    function, _, params = FAMILY[name]
    masks, labels, scores = random_case(9, seed=2, height=24, width=16)
    scores = scores.half().float()
    expected = function(masks, labels, scores, **params, backend=backend)
    wide = masks.repeat_interleave(2, dim=2)[:, :, ::2]
    turned = masks.transpose(1, 2).contiguous().transpose(1, 2)
    moved = torch.cat([torch.zeros(3, dtype=torch.bool), masks.flatten()])[3:].view_as(masks)
    for strided in (wide, turned, moved):
        result = function(strided, labels, scores, **params, backend=backend)
        assert torch.equal(result, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = function(masks, labels, scores.half(), **params, backend=backend)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("name", NMS)
def test_table_passes_parameters_on(name):
    masks, labels, scores = random_case(30, seed=5, classes=3)
    params = {"kernel": "linear", "sigma": 1.0, "thresh": 0.2, "class_agnostic": True}
    nms = build_nms(name, params | {"backend": "torch"})
    used = {key: params[key] for key in nms.keywords if key in params and key != "class_agnostic"}
    slow = getattr(reference, f"{name}_nms")
    expected = slow(masks.numpy(), np.zeros(30), scores.numpy(), **used)
    result = nms(masks, labels, scores).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("functions", "changes", "named"),
    [
        ((matrix_nms, soft_nms), {"kernel": "cubic"}, "'gaussian' or 'linear'"),
        (NMS.values(), {"backend": "cuda"}, "'auto', 'torch', 'tiled', 'triton'"),
        (NMS.values(), {"masks": torch.zeros(30, 13, 7)}, "bool"),
        (NMS.values(), {"labels": torch.zeros(29).long()}, "as many labels"),
        (NMS.values(), {"rows": MaskRows(torch.arange(20))}, "20 masks"),
        (NMS.values(), {"areas": torch.ones(29)}, "30 masks need as many areas"),
    ],
)
def test_what_does_not_fit_is_refused(functions, changes, named):
    case = dict(zip(("masks", "labels", "scores"), random_case(30, seed=0), strict=True))
    for function in functions:
        with pytest.raises(ValueError, match=named):
            function(**case | changes)
    with pytest.raises(ValueError, match="fast, hard, matrix, soft"):
        build_nms("none", {})
