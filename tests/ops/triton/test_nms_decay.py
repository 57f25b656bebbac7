"""Matrix NMS and fast NMS by Triton, from counts; float64 is the measure of the error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.ops.matrix_nms import matrix_nms
from tests.ops.nms_cases import FAMILY, random_case

nms_decay = pytest.importorskip("solo_d2.ops.triton.nms_decay", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


def on_device(case):
    return [x.to(DEVICE) for x in case]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("num", [1, 17, 129])
def test_error_is_torchs_own(num, kernel, exact, monkeypatch):
    if not exact:  # the way of masks of more than 2^23 pixels
        monkeypatch.setattr(nms_decay, "FLOAT32_PIXELS", 0)
    case = random_case(num, num, 7, 13, classes=2)
    truth = exact_matrix_nms(*case, kernel)
    own = (matrix_nms(*case, kernel=kernel, backend="torch") - truth).abs().max()
    overlaps = mask_overlaps(*case[:2], backend="torch").triu().to(DEVICE)
    scores = case[2].to(DEVICE)
    result = nms_decay.matrix_nms_decay_triton(overlaps, scores, 91, kernel=kernel, sigma=2.0)
    assert (result.cpu() - truth).abs().max() <= 2 * own + 1e-7


@pytest.mark.parametrize("exact", [True, False])
def test_worst_iou_rounds_once(exact, monkeypatch):
    if not exact:
        monkeypatch.setattr(nms_decay, "FLOAT32_PIXELS", 0)
    masks, labels, _ = random_case(40, 4, 25, 31, classes=2)
    overlaps = mask_overlaps(masks, labels, backend="torch").triu().to(DEVICE)
    worst = nms_decay.worst_iou_triton(overlaps, 25 * 31)
    assert torch.equal(worst.cpu(), exact_iou(masks, labels).amax(0).float())


def test_counts_beyond_float32():
    counts = torch.tensor([[2**30, 2**30 - 1], [0, 2**30 - 1]], dtype=torch.int32, device=DEVICE)
    worst = nms_decay.worst_iou_triton(counts, 2**30)
    assert worst.tolist() == [0, torch.tensor((2**30 - 1) / 2**30).item()]


@pytest.mark.parametrize("name", ["matrix-gaussian", "matrix-linear", "fast"])
@given(
    num=st.integers(0, 24),
    seed=st.integers(0, 9999),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    agnostic=st.booleans(),
)
@settings(deadline=None, max_examples=4)
def test_equals_reference_backend(name, num, seed, height, width, agnostic):
    function, _, params = FAMILY[name]
    case = random_case(num, seed, height, width, classes=3)
    params = params | {"class_agnostic": agnostic}
    expected = function(*case, **params, backend="torch")
    result = function(*on_device(case), **params, backend="triton").cpu()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_all_full_or_all_empty(kernel, fill):
    masks = torch.full((5, 6, 9), fill, device=DEVICE)
    labels = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    scores = torch.full((5,), 0.5, device=DEVICE)
    result = matrix_nms(masks, labels, scores, kernel=kernel, backend="triton")
    expected = matrix_nms(masks, labels, scores, kernel=kernel, backend="torch")
    torch.testing.assert_close(result, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("num", [500, 3000])
def test_as_many_as_in_use(num, kernel):
    case = random_case(num, 1, 100, 152, classes=10)
    truth = exact_matrix_nms(*case, kernel)
    own = (matrix_nms(*case, kernel=kernel, backend="torch") - truth).abs().max()
    result = matrix_nms(*on_device(case), kernel=kernel, backend="triton").cpu()
    assert (result - truth).abs().max() <= 2 * own + 1e-7
