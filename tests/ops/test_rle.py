"""Run-length encoding, byte for byte against pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from solo_d2.ops import rle
from solo_d2.ops.rle import encode_masks

coco = pytest.importorskip("pycocotools.mask")


@pytest.fixture(autouse=True, params=["in boxes", "at once"])
def way(request, monkeypatch):
    """Both ways to find runs, on the CPU."""
    if request.param == "at once":
        monkeypatch.setattr(rle, "_changes_in_boxes", lambda m: rle._changes_at_once(m).numpy())
        monkeypatch.setattr(rle, "PART_PIXELS", 100)
    return request.param


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
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
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


class Waits(TorchDispatchMode):
    """Names of the operators that wait for a GPU, if one has the tensors."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("nonzero", "_local_scalar_dense", "_to_copy", "masked_select", "unique"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_waited_for_once_an_image(monkeypatch):
    """And once more for the copy of the runs."""
    monkeypatch.setattr(rle, "PART_PIXELS", 1 << 28)
    masks = torch.rand(50, 30, 40) > 0.5
    with Waits() as waits:
        changes = rle._changes_at_once(masks)
    assert waits.names == ["nonzero"]
    assert np.array_equal(changes.numpy(), rle._changes_in_boxes(masks))


@pytest.mark.gpu
def test_masks_on_a_gpu(way):
    masks = torch.rand(40, 101, 77, device="cuda") > 0.7
    assert encode_masks(masks) == by_pycocotools(masks.cpu())
