"""Binary masks with areas, soft sums and scores: all backends against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.binary_masks import BinaryMasks, binarize_chunks, binarize_product, mask_scores
from tests.ops import backends
from tests.ops.backends import to_backend

TOLERANCE = 1e-5


def factors(num, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(num, channels, generator=generator)
    return kernels, torch.randn(channels, height, width, generator=generator).relu()


def product(kernels, feature, thresh=0.5, backend="tiled"):
    found = binarize_product(*to_backend(backend, kernels, feature), thresh, backend=backend)
    return BinaryMasks(*(x.cpu() for x in found))


def check(kernels, feature, thresh=0.5, backend="tiled"):
    """Masks but for ties, areas of these masks, sums over these masks."""
    found = product(kernels, feature, thresh, backend)
    probs = torch.einsum("me,ehw->mhw", kernels.double(), feature.double()).sigmoid()
    wrong = found.masks != (probs > thresh)
    assert not wrong[(probs - thresh).abs() > TOLERANCE].any()
    assert found.masks.dtype == torch.bool
    assert found.areas.dtype in (torch.int32, torch.int64)
    assert torch.equal(found.areas.sum(dim=1), found.masks.sum(dim=(1, 2)))
    assert found.soft_sums.dtype == torch.float32
    sums, soft_sums = (probs * found.masks).sum(dim=(1, 2)), found.soft_sums.sum(dim=1)
    torch.testing.assert_close(soft_sums.double(), sums, rtol=TOLERANCE, atol=TOLERANCE)


SHAPES = [(0, 4, 5, 6), (3, 4, 0, 5), (1, 1, 1, 1), (17, 5, 7, 13), (129, 33, 7, 13)]


@backends.ALL
@pytest.mark.parametrize(
    ("shape", "thresh"),
    [
        *((shape, 0.5) for shape in (*SHAPES, (65, 64, 20, 31))),
        *(((9, 6, 11, 12), thresh) for thresh in (0.0, 0.2, 0.9, 1.0)),
    ],
)
def test_sizes_and_thresholds(shape, thresh, backend):
    check(*factors(*shape), thresh, backend)


@backends.ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_summed_up_in_float32(dtype, backend):
    if (dtype, backend, backends.DEVICE) == (torch.bfloat16, "triton", "cpu"):
        pytest.skip("the interpreter has no bfloat16 and multiplies its bits as integers")
    kernels, feature = (x.to(dtype) for x in factors(9, 40, 10, 14))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(kernels, feature, backend=backend)


@given(
    num=st.integers(0, 20),
    channels=st.integers(1, 9),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile=st.integers(1, 5000),
    least=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_tiles_change_nothing(num, channels, size, tile, least):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solo_d2.ops.binary_masks.TILE_ELEMENTS", tile)
        patch.setattr("solo_d2.ops.binary_masks.LEAST_TILE_COLUMNS", least)
        check(*factors(num, channels, *size))


def test_chunks_of_the_reference_change_nothing(monkeypatch):
    monkeypatch.setattr("solo_d2.ops.binary_masks.CHUNK_ELEMENTS", 500)  # 2 masks
    check(*factors(7, 5, 13, 17), backend="torch")


def test_threads_change_not_a_bit(monkeypatch):
    monkeypatch.setattr("solo_d2.ops.binary_masks.TILE_ELEMENTS", 1 << 10)
    monkeypatch.setattr("solo_d2.ops.binary_masks.LEAST_TILE_COLUMNS", 16)
    num_threads = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(product(*factors(33, 16, 60, 70)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(num_threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@backends.ALL
def test_strided_factors(backend):
    kernels, feature = factors(8, 6, 14, 15)
    kernels, feature = kernels[::2, ::2], feature[::2].transpose(1, 2)[:, 1:, ::3]
    if backend == "triton":  # which takes factors of two precisions
        kernels = kernels.half()
    check(kernels, feature, backend=backend)


@backends.ALL
def test_a_pixel_of_nan_makes_the_soft_sum_nan(backend):
    kernels, feature = factors(5, 4, 6, 7)
    kernels[1, 2] = float("nan")
    found = product(kernels, feature, backend=backend)
    assert found.soft_sums.sum(dim=1).isnan().tolist() == [False, True] + [False] * 3
    feature[0, 2, 3] = float("nan")
    found = product(kernels, feature, backend=backend)
    assert found.soft_sums.sum(dim=1).isnan().all()
    assert torch.equal(found.masks, product(kernels, feature, backend="torch").masks)


@backends.TORCH_AND_TRITON
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (1, 1, 1), (35, 7, 13), (70, 16, 20)])
def test_given_probabilities(shape, backend):
    """As of a head whose masks are no product; some masks at a time."""
    probs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    probs[::9, -1:, -1:] = float("nan")
    chunks = to_backend(backend, *probs.split(33))
    found = binarize_chunks(chunks, shape, 0.4, chunks[0].device, backend=backend)
    assert torch.equal(found.masks.cpu(), probs > 0.4)
    assert torch.equal(found.areas.sum(dim=1).cpu(), (probs > 0.4).sum(dim=(1, 2)))
    expected = (probs * (probs > 0.4)).sum(dim=(1, 2))
    torch.testing.assert_close(found.soft_sums.sum(dim=1).cpu(), expected, equal_nan=True)


def score_case(num, parts):
    """Sums with masks that are empty, just too small, just large enough, and NaN."""
    generator = torch.Generator().manual_seed(0)
    areas = torch.randint(0, 4, (num, parts), generator=generator, dtype=torch.int32)
    areas[::5] = 0
    sums = areas * torch.rand(num, parts, generator=generator)
    sums[1::7, -1] = float("nan")
    least = areas.sum(dim=1).float() - torch.arange(num) % 2
    return areas, sums, torch.rand(num, generator=generator), least.clamp(min=0)


def few_pixels_and_strides():
    """Most parts of the image have no pixel of the mask."""
    areas, sums, scores, least = score_case(34, 6)
    areas *= torch.rand(areas.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    return areas[1::2], sums[1::2], scores[1::2], least[1::2] * 0


SCORES = [score_case(*size) for size in ((0, 3), (1, 1), (40, 1), (17, 2), (40, 65))]


@backends.TORCH_AND_TRITON
@pytest.mark.parametrize("case", [*SCORES, few_pixels_and_strides()], ids=lambda x: len(x[0]))
def test_scores_by_definition(case, backend):
    areas, soft_sums, class_scores, least_areas = case
    scores, spans = mask_scores(*to_backend(backend, *case), backend=backend)
    expected = []
    totals = areas.sum(dim=1), soft_sums.sum(dim=1), class_scores, least_areas
    for area, soft_sum, score, least in zip(*(x.tolist() for x in totals), strict=True):
        score = score * soft_sum / max(area, 1)
        expected.append(score if area > least and score > 0 else 0.0)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.cpu(), torch.tensor(expected))
    if backend == "torch":
        assert spans is None
    else:
        assert spans.dtype == torch.int32
        assert spans.tolist() == list(expected_spans(areas, expected))


def expected_spans(areas, scores):
    """The pixels from the first to the last part of the image with a pixel of the mask."""
    from solo_d2.ops.triton.binary_masks import BLOCK_PIXELS

    for sums, score in zip(areas, scores, strict=True):
        reached = sums.nonzero()[:, 0].tolist() if score > 0 else []
        first, last = (reached[0], reached[-1]) if reached else (len(sums), -1)
        yield [first * BLOCK_PIXELS, (last + 1) * BLOCK_PIXELS - 1]
