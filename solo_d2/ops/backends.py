"""By what means a mask operation runs; the choices differ in speed alone."""

import importlib.util
import os

import torch

# "torch" is the reference, "tiled" is made for the CPU, "triton" for CUDA.
BACKENDS = ("auto", "torch", "tiled", "triton")


def choose_backend(backend: str, device: torch.device) -> str:
    """Resolve "auto" by device, and refuse what cannot run there.

    Args:
        backend: one of `BACKENDS`; anything else raises ValueError.
        device: of the masks.

    Returns:
        One of `BACKENDS` other than "auto".
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {BACKENDS}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"the backend 'triton' needs a CUDA device, not {device}")
    if backend != "auto":
        return backend
    if device.type == "cpu":
        return "tiled"
    has_triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return "triton" if has_triton else "torch"
