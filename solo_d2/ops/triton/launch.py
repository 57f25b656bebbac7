"""The only place that launches kernels."""

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *args: Any, **options: Any) -> None:
    """Launch a kernel on the device of its first argument, whatever the current device is.

    Args:
        kernel: a function decorated with `triton.jit`.
        grid: number of programs along each axis.
        first: the kernel's first argument.
        *args: its other arguments.
        **options: its constants, `num_warps` and `num_stages`.
    """
    with torch.cuda.device_of(first):
        kernel[grid](first, *args, **options)
