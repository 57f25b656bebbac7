"""Which backend runs: by device, and by what the device turns out to be able to do."""

import logging
import subprocess

import pytest
import torch

from solo_d2.ops import backends
from solo_d2.ops.backends import allows_tf32, choose_backend

GPU = torch.device("cuda:0")


@pytest.fixture
def gpu(monkeypatch):
    """Make a GPU of a given capability believable; its kernels run in the interpreter."""
    pytest.importorskip("triton")
    from solo_d2.ops.triton import mask_overlap

    overlaps, ones, zeros = mask_overlap.mask_overlaps_triton, torch.ones, torch.zeros

    def prepare(capability=(8, 0), run=overlaps):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
        monkeypatch.setattr(torch, "ones", lambda *size, dtype, device: ones(*size, dtype=dtype))
        monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
        monkeypatch.setattr(mask_overlap, "mask_overlaps_triton", run)

    for function in (backends._triton_fault, backends._warn_once):
        function.cache_clear()
    yield prepare
    for function in (backends._triton_fault, backends._warn_once):
        function.cache_clear()


def test_backend_follows_device(gpu):
    assert choose_backend("auto", torch.device("cpu")) == "tiled"
    assert choose_backend("auto", torch.device("mps")) == "torch"
    assert choose_backend("torch", GPU) == "torch"
    with pytest.raises(ValueError, match="'auto', 'torch', 'tiled', 'triton'"):
        choose_backend("numpy", torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="needs a CUDA device, not cpu"):
            choose_backend("triton", torch.device("cpu"))
    gpu()
    assert choose_backend("auto", GPU) == choose_backend("triton", GPU) == "triton"


def fails(error):
    def run(masks, groups):
        raise error

    return run


@pytest.mark.parametrize(
    ("capability", "run", "reason"),
    [
        ((7, 5), None, "Some GPU has compute capability 7.5, below 8.0"),
        ((9, 0), fails(RuntimeError("Failed to find C compiler.\nSet CC")), "find C compiler."),
        ((9, 0), fails(subprocess.CalledProcessError(1, ["gcc", "main.c"])), "'main.c'"),
        ((9, 0), fails(ModuleNotFoundError("No module named 'triton'")), "named 'triton'"),
        ((9, 0), lambda masks, groups: groups[None], r"returns \[\[0, 0\]\]"),
    ],
)
def test_torch_with_one_warning_where_kernels_cannot_run(gpu, caplog, capability, run, reason):
    gpu(capability, run)
    with caplog.at_level(logging.WARNING):
        for index in (0, 1, 0):
            assert choose_backend("auto", torch.device("cuda", index)) == "torch"
    (record,) = caplog.records
    assert "8.0" in record.getMessage()
    with pytest.raises(ValueError, match=f"cannot run on cuda:0: .*{reason}"):
        choose_backend("triton", GPU)


@pytest.mark.parametrize(
    ("legacy", "precision", "allowed"),
    [(True, None, True), (False, None, False), (None, "tf32", True), (None, "ieee", False)],
)
def test_tf32_is_read_however_it_was_set(legacy, precision, allowed):
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        if precision is None:
            matmul.allow_tf32 = legacy
        elif hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = precision
        else:
            pytest.skip("this torch has one way to set it")
        assert allows_tf32() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
