"""The mask NMS by Triton; of decays float64 is the measure of the error."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.ops.matrix_nms import matrix_nms
from tests.ops.backends import DEVICE
from tests.ops.nms_cases import FAMILY, random_case
from tests.ops.test_mask_nms import filled

pytest.importorskip("triton")
from solo_d2.ops.triton import nms_decay, nms_greedy

family = pytest.mark.parametrize("name", FAMILY)


@pytest.fixture(params=[True, False])
def exact(request, monkeypatch):
    """Quotients in float32, or the way of masks of more than 2^23 pixels."""
    if not request.param:
        monkeypatch.setattr(nms_decay, "FLOAT32_PIXELS", 0)
        monkeypatch.setattr(nms_greedy, "FLOAT32_PIXELS", 0)


def exact_iou(masks, labels):
    counts = mask_overlaps(masks, labels, backend="torch").triu().double()
    area = counts.diagonal()
    shared = counts.triu(1)
    return shared / (area[:, None] + area - shared).clamp(min=1)


def exact_matrix_nms(masks, labels, scores, kernel):
    iou = exact_iou(masks, labels)
    worst = iou.amax(0)[:, None]
    if kernel == "gaussian":
        decay = torch.exp(-2 * (iou.square() - worst.square()))
    else:
        decay = torch.where(worst < 1, (1 - iou) / (1 - worst).clamp(min=1e-300), 1.0)
    return scores.double() * decay.amin(0).clamp(max=1)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize(
    ("num", "height", "width"),
    [
        *((1, 7, 13), (17, 7, 13), (129, 7, 13)),
        *(pytest.param(num, 100, 152, marks=pytest.mark.gpu) for num in (500, 3000)),
    ],
)
def test_error_is_torchs_own(num, height, width, kernel):
    case = random_case(num, num, height, width, classes=2)
    truth = exact_matrix_nms(*case, kernel)
    own = (matrix_nms(*case, kernel=kernel, backend="torch") - truth).abs().max()
    overlaps = mask_overlaps(*case[:2], backend="torch").triu().to(DEVICE)
    scores = case[2].to(DEVICE)
    result = nms_decay.matrix_nms_decay_triton(
        overlaps, scores, height * width, kernel=kernel, sigma=2.0
    )
    assert (result.cpu() - truth).abs().max() <= 2 * own + 1e-7


@pytest.mark.usefixtures("exact")
def test_worst_iou_rounds_once():
    masks, labels, _ = random_case(40, 4, 25, 31, classes=2)
    overlaps = mask_overlaps(masks, labels, backend="torch").triu().to(DEVICE)
    worst = nms_decay.worst_iou_triton(overlaps, 25 * 31)
    assert torch.equal(worst.cpu(), exact_iou(masks, labels).amax(0).float())


def test_counts_beyond_float32():
    counts = torch.tensor([[2**30, 2**30 - 1], [0, 2**30 - 1]], dtype=torch.int32, device=DEVICE)
    worst = nms_decay.worst_iou_triton(counts, 2**30)
    assert worst.tolist() == [0, torch.tensor((2**30 - 1) / 2**30).item()]


def check(name, case, **more):
    function, _, params = FAMILY[name]
    params = params | more
    expected = function(*case, **params, backend="torch")
    result = function(*[x.to(DEVICE) for x in case], **params, backend="triton").cpu()
    close = {"rtol": 0, "atol": 0} if name == "hard" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(result, expected, **close)


@family
@given(
    num=st.integers(0, 24),
    seed=st.integers(0, 9999),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    agnostic=st.booleans(),
)
@example(num=40, seed=40, size=(7, 13), agnostic=False)
@settings(deadline=None, max_examples=3)
def test_equals_reference_backend(name, num, seed, size, agnostic):
    check(name, random_case(num, seed, *size, classes=3), class_agnostic=agnostic)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("name", ["matrix-gaussian", "matrix-linear"])
def test_all_full_or_all_empty(name, fill):
    check(name, filled(fill, 5, 6, 9))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ["hard", "soft-linear"])
def test_overlap_at_the_threshold_is_kept(name):
    """3 of 10 pixels at 0.3: the float32 quotient is the float32 threshold, not above it."""
    masks = torch.zeros(3, 1, 10, dtype=torch.bool)
    masks[0] = masks[1, 0, :3] = masks[2, 0, :4] = True
    case = (masks, torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7]))
    check(name, case, thresh=0.3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["hard", "soft-gaussian", "soft-linear"])
@pytest.mark.parametrize("num", [500, 3000])
def test_as_many_as_in_use(name, num):
    check(name, random_case(num, 1, 50, 76, classes=10))
