"""Overlaps of masks: exact counts by every backend, beyond what float32 can count."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops import mask_iou as module
from solo_d2.ops.mask_iou import mask_iou, mask_overlaps, match_pairs, pairwise_mask_iou
from tests.ops import backends
from tests.ops.nms_cases import random_case


def expected_overlaps(masks, groups):
    shared = (masks[:, None] & masks[None]).flatten(2).sum(2).int().triu()
    return shared * (groups[:, None] == groups[None])


@backends.ON_CPU
@given(
    num=st.integers(0, 50),
    seed=st.integers(0, 9999),
    height=st.integers(1, 90),
    width=st.integers(1, 150),
    classes=st.integers(1, 4),
)
@settings(deadline=None, max_examples=30)
def test_counts_are_exact(backend, num, seed, height, width, classes):
    masks, groups, _ = random_case(num, seed, height, width, classes)
    overlaps = mask_overlaps(masks, groups, backend=backend)
    assert overlaps.dtype == torch.int32
    assert torch.equal(overlaps.triu(), expected_overlaps(masks, groups))


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_without_fast_int8_product(monkeypatch, density):
    """The way of processors without the instructions, and of GPUs."""
    monkeypatch.setattr(module, "has_fast_int8_product", lambda device: False)
    masks = torch.rand(20, 50, 70, generator=torch.Generator().manual_seed(0)) < density
    groups = torch.zeros(20, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        overlaps = mask_overlaps(masks, groups, backend="tiled")
    assert torch.equal(overlaps.triu(), expected_overlaps(masks, groups))


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 4, 4), (17, 7, 13), (64, 8, 8), (33, 40, 41)])
def test_int8_product_has_sizes_that_cublas_takes(monkeypatch, shape):
    """The product of GPUs without Triton, with the checks of `torch._int_mm` for CUDA."""
    int_mm = torch._int_mm

    def checked(a, b):
        assert a.shape[0] > 16
        assert a.shape[1] % 8 == b.shape[1] % 8 == 0
        assert a.stride(1) == b.stride(0) == 1
        return int_mm(a, b)

    monkeypatch.setattr(torch, "_int_mm", checked)
    monkeypatch.setattr(module, "has_fast_int8_product", lambda device: True)
    monkeypatch.setattr(module, "INT8_MULTIPLES", {"cpu": module.INT8_MULTIPLES["cuda"]})
    # The reference goes by device.
    monkeypatch.setattr(module, "_count_in_float32", module._count_pairs)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 640 * shape[0])  # two chunks of the largest
    masks, groups, _ = random_case(shape[0], 1, *shape[1:])
    overlaps = mask_overlaps(masks, groups, backend="torch")
    assert torch.equal(overlaps.triu(), expected_overlaps(masks, groups))


@pytest.mark.parametrize(
    ("capability", "hip", "fast"), [((7, 0), None, 0), ((7, 5), None, 1), ((9, 0), "6.2", 0)]
)
def test_gpus_that_multiply_int8(monkeypatch, capability, hip, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert module.has_fast_int8_product.__wrapped__(torch.device("cuda:0")) == fast


@backends.ON_CPU
def test_more_pixels_than_float32_counts(backend):
    """2^24 + 16400 pixels: a float32 sum would stop at 2^24 or round."""
    side = 4098
    masks = torch.ones(2, side, side, dtype=torch.bool)
    masks[1, 17, 1] = masks[1, 4000, 4097] = masks[1, 0, 0] = False
    overlaps = mask_overlaps(masks, torch.zeros(2, dtype=torch.int64), backend=backend)
    area = side * side
    assert area > 2**24
    assert overlaps.triu().tolist() == [[area, area - 3], [0, area - 3]]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which cannot tell the two apart
        iou = mask_iou(masks, backend=backend)
    assert iou.dtype == torch.float32
    assert iou[0, 1].item() == torch.tensor((area - 3) / area).item()


def test_too_many_pixels_are_refused():
    masks = torch.zeros(1, 1, 1, dtype=torch.bool).expand(1, 1 << 16, 1 << 15)
    with pytest.raises(ValueError, match="at most 2147479552"):
        mask_overlaps(masks, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (4, 7)])
def test_iou_by_definition(n, m):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(k, 9, 11, generator=generator) > 0.6 for k in (n, m))
    a[:1] = False
    found = pairwise_mask_iou(a, b)
    assert found.shape == (n, m)
    for i in range(n):
        for j in range(m):
            union = (a[i] | b[j]).sum()
            expected = (a[i] & b[j]).sum() / union if union else torch.tensor(0.0)
            torch.testing.assert_close(found[i, j], expected.float())
    for backend in ("torch", "tiled"):
        assert torch.equal(mask_iou(a, backend=backend), pairwise_mask_iou(a, a))


def test_best_pairs_first_each_once_and_ties_in_order():
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.85, 0.3, 0.2], [0.9, 0.0, 0.3]])
    assert match_pairs(similarity, 0.25) == [(0, 0), (1, 1), (2, 2)]
    assert match_pairs(similarity, 0.31) == [(0, 0)]
    assert match_pairs(torch.zeros(0, 4), 0.5) == match_pairs(torch.zeros(3, 0), 0.5) == []
