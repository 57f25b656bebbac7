"""Copies of results to the CPU, with one device synchronization."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU; CPU tensors are returned unchanged.

    CUDA tensors are copied to pinned memory asynchronously, at the full rate of the bus, then to
    pageable memory, so that results do not occupy pinned memory.
    """
    copies = [x.to("cpu", non_blocking=x.is_cuda) for x in tensors]
    for device in {x.device for x in tensors if x.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [copy.clone() if x.is_cuda else copy for x, copy in zip(tensors, copies, strict=True)]
