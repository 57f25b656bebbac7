"""Large buffers on the host, in huge pages.

Torch's host allocator gives fresh memory in pages of 4 KiB, and touching a page for the first time
costs more than what is then computed with it. NumPy asks the kernel for huge pages, and for zeros
gives memory that costs nothing until it is touched.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def zero_masks(shape: Sequence[int], device: torch.device) -> Tensor:
    """Binary masks that are False everywhere; on the host, memory is taken when it is written.

    Args:
        shape: any, also with zeros.
        device: where the result lies.

    Returns:
        (*shape) bool.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=torch.bool, device=device)
    return torch.from_numpy(np.zeros(tuple(shape), dtype=np.bool_))
