"""Binary masks with areas and soft sums: all backends against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.binary_masks import binarize_chunks, binarize_product, mask_scores


def factors(num, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(num, channels, generator=generator)
    return kernels, torch.randn(channels, height, width, generator=generator).relu()


def check(found, kernels, feature, thresh=0.5, tolerance=1e-5):
    """Masks but for ties, areas of these masks, sums over these masks."""
    logits = torch.einsum("me,ehw->mhw", kernels.double(), feature.double())
    probs = logits.sigmoid()
    wrong = found.masks != (probs > thresh)
    assert not wrong[(probs - thresh).abs() > tolerance].any()
    assert found.masks.dtype == torch.bool
    assert found.areas.dtype in (torch.int32, torch.int64)
    assert torch.equal(found.areas.sum(dim=1), found.masks.sum(dim=(1, 2)))
    assert found.soft_sums.dtype == torch.float32
    sums, soft_sums = (probs * found.masks).sum(dim=(1, 2)), found.soft_sums.sum(dim=1)
    torch.testing.assert_close(soft_sums.double(), sums, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "tiled"])
@pytest.mark.parametrize(
    "shape", [(0, 4, 5, 6), (1, 1, 1, 1), (17, 5, 7, 13), (129, 33, 31, 50), (3, 4, 0, 5)]
)
def test_products(shape, backend):
    kernels, feature = factors(*shape)
    check(binarize_product(kernels, feature, 0.5, backend=backend), kernels, feature)


@pytest.mark.parametrize("thresh", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("backend", ["torch", "tiled"])
def test_thresholds(thresh, backend):
    kernels, feature = factors(9, 6, 11, 12)
    check(binarize_product(kernels, feature, thresh, backend=backend), kernels, feature, thresh)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", "tiled"])
def test_half_precision_is_summed_up_in_float32(dtype, backend):
    kernels, feature = (x.to(dtype) for x in factors(9, 64, 20, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = binarize_product(kernels, feature, 0.5, backend=backend)
    check(found, kernels, feature)


@given(
    num=st.integers(0, 20),
    channels=st.integers(1, 9),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile=st.integers(1, 5000),
    least=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_tiles_change_nothing(num, channels, size, tile, least):
    kernels, feature = factors(num, channels, *size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solo_d2.ops.binary_masks.TILE_ELEMENTS", tile)
        patch.setattr("solo_d2.ops.binary_masks.LEAST_TILE_COLUMNS", least)
        check(binarize_product(kernels, feature, 0.5, backend="tiled"), kernels, feature)


def test_chunks_of_the_reference_change_nothing(monkeypatch):
    monkeypatch.setattr("solo_d2.ops.binary_masks.CHUNK_ELEMENTS", 500)  # 2 masks
    kernels, feature = factors(7, 5, 13, 17)
    check(binarize_product(kernels, feature, 0.5, backend="torch"), kernels, feature)


def test_threads_change_not_a_bit(monkeypatch):
    monkeypatch.setattr("solo_d2.ops.binary_masks.TILE_ELEMENTS", 1 << 10)
    monkeypatch.setattr("solo_d2.ops.binary_masks.LEAST_TILE_COLUMNS", 16)
    kernels, feature = factors(33, 16, 60, 70)
    num_threads = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(binarize_product(kernels, feature, 0.5, backend="tiled"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(num_threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_factors():
    kernels, feature = factors(8, 6, 14, 15)
    kernels, feature = kernels[::2, ::2], feature[::2].transpose(1, 2)[:, 1:, ::3]
    check(binarize_product(kernels, feature, 0.5, backend="tiled"), kernels, feature)


def test_probabilities_in_parts():
    """A product of two sigmoids, as another head gives it."""
    kernels, feature = factors(6, 3, 10, 11)
    probs = (kernels @ feature.flatten(1)).sigmoid().view(6, 10, 11)
    result = binarize_chunks(probs.split(4), (6, 10, 11), 0.5, probs.device)
    check(result, kernels, feature)


def score_case(num, parts, seed=0):
    """Sums with masks that are empty, just too small, just large enough, and NaN."""
    generator = torch.Generator().manual_seed(seed)
    areas = torch.randint(0, 4, (num, parts), generator=generator, dtype=torch.int32)
    areas[::5] = 0
    sums = areas * torch.rand(num, parts, generator=generator)
    sums[1::7, -1] = float("nan")
    least = areas.sum(dim=1).float() - torch.arange(num) % 2
    return areas, sums, torch.rand(num, generator=generator), least.clamp(min=0)


def check_scores(areas, soft_sums, class_scores, least_areas, backend):
    scores, spans = mask_scores(areas, soft_sums, class_scores, least_areas, backend=backend)
    expected = []
    totals = areas.sum(dim=1), soft_sums.sum(dim=1), class_scores, least_areas
    for area, soft_sum, score, least in zip(*(x.tolist() for x in totals), strict=True):
        score = score * soft_sum / max(area, 1)
        expected.append(score if area > least and score > 0 else 0.0)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.cpu(), torch.tensor(expected))
    return scores, spans


@pytest.mark.parametrize(("num", "parts"), [(0, 3), (1, 1), (40, 1), (50, 70)])
def test_scores_by_definition(num, parts):
    assert check_scores(*score_case(num, parts), backend="torch")[1] is None
