"""Copies of results to the CPU, with one wait for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU.

    Those of CUDA are copied to pinned memory, at the full rate of the bus and in order
    without a wait between, and from there to plain memory: results that a program keeps pin
    nothing.

    Args:
        tensors: of any shapes, dtypes and devices.

    Returns:
        The tensors, in order; one of the CPU is returned as it is.
    """
    copies = [x.to("cpu", non_blocking=x.is_cuda) for x in tensors]
    for device in {x.device for x in tensors if x.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [copy.clone() if x.is_cuda else copy for x, copy in zip(tensors, copies, strict=True)]
