"""Backends of the mask operations, which differ only in speed."""

import logging
import os
from functools import lru_cache

import torch

# "torch" is the reference, "tiled" is for CPUs, "triton" for CUDA.
BACKENDS = ("auto", "torch", "tiled", "triton")
# Minimum compute capability for 8-bit integer products on tensor cores in Triton.
LEAST_CAPABILITY = (8, 0)

logger = logging.getLogger(__name__)


def choose_backend(backend: str, device: torch.device) -> str:
    """Resolve "auto" by device and check that the backend can run there.

    On a GPU that cannot run the kernels, "auto" becomes "torch", with one warning that says why.

    Args:
        backend: one of `BACKENDS`; anything else raises ValueError, and so does "triton" where the
            kernels cannot run.
        device: device of the masks.

    Returns:
        One of `BACKENDS` other than "auto".
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {BACKENDS}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"the backend 'triton' needs a CUDA device, not {device}")
    if backend == "auto" and device.type != "cuda":
        return "tiled" if device.type == "cpu" else "torch"
    if backend in ("torch", "tiled") or device.type != "cuda":
        return backend
    fault = _triton_fault(device)
    if not fault:
        return "triton"
    if backend == "triton":
        raise ValueError(f"the backend 'triton' cannot run on {device}: {fault}")
    _warn_once(fault)
    return "torch"


def allows_tf32() -> bool:
    """Return whether torch may round the factors of a float32 product on CUDA to TF32."""
    matmul = torch.backends.cuda.matmul
    # Since torch 2.9; reading `allow_tf32` raises once a user has set it.
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32 if precision is None else precision == "tf32")


@lru_cache
def _triton_fault(device: torch.device) -> str:
    """Try a kernel on a CUDA device; return why it cannot run, or "" if it can."""
    try:
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            return "{} has compute capability {}.{}, below {}.{}".format(
                name, *capability, *LEAST_CAPABILITY
            )
        from solo_d2.ops.triton.mask_overlap import mask_overlaps_triton

        masks = torch.ones(2, 4, 4, dtype=torch.bool, device=device)
        overlaps = mask_overlaps_triton(masks, torch.zeros(2, dtype=torch.int64, device=device))
        counts = overlaps.triu().tolist()
    except Exception as error:  # no Triton, C compiler, Python.h or ptxas, too old a driver, ...
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if counts == [[16, 16], [0, 16]] else f"a trial run of a kernel returns {counts}"


@lru_cache
def _warn_once(fault: str) -> None:
    logger.warning(
        "Mask operations run in PyTorch instead of the faster Triton kernels: %s. The kernels need "
        "a GPU of compute capability %d.%d or more, Triton, a C compiler and Python.h.",
        fault,
        *LEAST_CAPABILITY,
    )
