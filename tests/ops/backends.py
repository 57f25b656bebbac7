"""Backends of the operators as the tests run them: Triton on a GPU, or else in its interpreter."""

import importlib.util

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
)
ON_CPU = pytest.mark.parametrize("backend", ["torch", "tiled"])
ALL = pytest.mark.parametrize("backend", ["torch", "tiled", TRITON])
TORCH_AND_TRITON = pytest.mark.parametrize("backend", ["torch", TRITON])


def to_backend(backend, *tensors):
    """The tensors on the device that the backend is tested on."""
    return [x.to(DEVICE) if backend == "triton" else x for x in tensors]
