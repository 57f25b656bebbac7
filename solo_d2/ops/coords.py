"""Coordinate channels (CoordConv, arXiv:1807.03247, as SOLO uses them: section 3.3)."""

import torch
from torch import Tensor


def append_coords(features: Tensor, axes: str = "xy") -> Tensor:
    """Append the coordinates of each pixel as channels.

    Args:
        features: (B, C, H, W).
        axes: which ones, in this order: "xy", "x" or "y".

    Returns:
        (B, C + len(axes), H, W): the input, then the coordinates, each from -1 at the first to 1 at
        the last pixel (-1 where there is one pixel only), in the input's dtype.
    """
    batch, _, height, width = features.shape
    # linspace in float32: in half precision its steps would be uneven.
    x = _coordinates(width, features.device).to(features.dtype)
    y = _coordinates(height, features.device).to(features.dtype)
    coords = {"x": x, "y": y[:, None]}
    channels = [coords[axis].expand(batch, 1, height, width) for axis in axes]
    return torch.cat([features, *channels], dim=1)


def _coordinates(size: int, device: torch.device) -> Tensor:
    """(size,) float32 from -1 to 1."""
    if not torch.compiler.is_compiling():
        return torch.linspace(-1, 1, size, device=device)
    # A trace would keep the number of steps as a constant.
    index = torch.arange(size, device=device).float()
    return 2 * index / index[-1:].clamp(min=1) - 1
