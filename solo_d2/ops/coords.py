"""Coordinate channels (CoordConv, arXiv:1807.03247, as SOLO uses them: section 3.3)."""

import torch
from torch import Tensor


def append_coords(features: Tensor, axes: str = "xy") -> Tensor:
    """Append the channels of `coord_maps` to features (B, C, H, W)."""
    return torch.cat([features, coord_maps(features, axes)], dim=1)


def coord_maps(features: Tensor, axes: str = "xy") -> Tensor:
    """Return the coordinates of each pixel as channels.

    Args:
        features: (B, C, H, W).
        axes: coordinates, in this order: "xy", "x" or "y".

    Returns:
        (B, len(axes), H, W) in the dtype of `features`; coordinates range from -1 at the first
        pixel to 1 at the last one (-1 for a single pixel).
    """
    batch, _, height, width = features.shape
    # linspace in float32: in half precision the steps would be uneven.
    x = _coordinates(width, features.device).to(features.dtype)
    y = _coordinates(height, features.device).to(features.dtype)
    coords = {"x": x.expand(height, width), "y": y[:, None].expand(height, width)}
    return torch.stack([coords[axis] for axis in axes]).expand(batch, -1, -1, -1)


def _coordinates(size: int, device: torch.device) -> Tensor:
    """(size,) float32 from -1 to 1."""
    if not torch.compiler.is_compiling():
        return torch.linspace(-1, 1, size, device=device)
    # A trace would record the number of steps as a constant.
    index = torch.arange(size, device=device).float()
    return 2 * index / index[-1:].clamp(min=1) - 1
