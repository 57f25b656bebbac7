"""Hard NMS and Soft-NMS by Triton."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.nms_cases import FAMILY, random_case

nms_greedy = pytest.importorskip("solo_d2.ops.triton.nms_greedy", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
family = pytest.mark.parametrize("name", ["hard", "soft-gaussian", "soft-linear"])


def check(name, case, **more):
    function, _, params = FAMILY[name]
    params = params | more
    expected = function(*case, **params, backend="torch")
    result = function(*[x.to(DEVICE) for x in case], **params, backend="triton").cpu()
    if name == "hard":
        assert torch.equal(result, expected)
    else:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@family
@pytest.mark.parametrize("num", [1, 17, 40])
def test_odd_numbers(name, num):
    check(name, random_case(num, num, 7, 13, classes=2))


@family
@given(num=st.integers(0, 24), seed=st.integers(0, 9999), agnostic=st.booleans())
@settings(deadline=None, max_examples=4)
def test_equals_reference_backend(name, num, seed, agnostic):
    case = random_case(num, seed, classes=3)
    check(name, case, class_agnostic=agnostic)


@pytest.mark.parametrize("exact", [True, False])
def test_overlap_at_the_threshold_is_kept(exact, monkeypatch):
    """3 of 10 pixels at 0.3: the float32 quotient is the float32 threshold, not above it."""
    if not exact:
        monkeypatch.setattr(nms_greedy, "FLOAT32_PIXELS", 0)
    masks = torch.zeros(3, 1, 10, dtype=torch.bool)
    masks[0] = masks[1, 0, :3] = masks[2, 0, :4] = True
    case = (masks, torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7]))
    check("hard", case, thresh=0.3)
    check("soft-linear", case, thresh=0.3)


@pytest.mark.gpu
@family
@pytest.mark.parametrize("num", [500, 3000])
def test_as_many_as_in_use(name, num):
    check(name, random_case(num, 1, 50, 76, classes=10))
