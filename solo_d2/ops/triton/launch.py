"""The only place that launches kernels."""

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *args: Any, **options: Any) -> None:
    """Launch a `triton.jit` kernel on the device of its first argument, not the current one."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *args, **options)
