"""Coordinate channels (CoordConv, arXiv:1807.03247, as SOLO uses them: section 3.3)."""

import torch
from torch import Tensor


def append_coords(features: Tensor) -> Tensor:
    """Append x and y of each pixel as two channels.

    Args:
        features: (B, C, H, W).

    Returns:
        (B, C + 2, H, W): the input, then x, then y, each from -1 at the first to 1 at the last
        pixel (-1 where there is one pixel only), in the input's dtype.
    """
    batch, _, height, width = features.shape
    # linspace in float32: in half precision its steps would be uneven.
    x = torch.linspace(-1, 1, width, device=features.device).to(features.dtype)
    y = torch.linspace(-1, 1, height, device=features.device).to(features.dtype)
    x = x.expand(batch, 1, height, width)
    y = y[:, None].expand(batch, 1, height, width)
    return torch.cat([features, x, y], dim=1)
