"""Colours of instances, of stuff and of drawings."""

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

# RGB in [0, 1].
Color = tuple[float, float, float]

# Background and lines of drawings, RGB.
PAPER, INK = (255, 255, 255), (40, 44, 52)
# The golden ratio as hue step keeps successive colours apart.
_HUE_STEP = 0.618034


def instance_color(index: int) -> Color:
    """Return the RGB colour in [0, 1] of an instance; consecutive indices differ clearly."""
    lightness = (0.55, 0.42, 0.66)[index % 3]
    return colorsys.hls_to_rgb((0.58 + index * _HUE_STEP) % 1.0, lightness, 0.85)


def stuff_color(label: int) -> Color:
    """Return the muted RGB colour in [0, 1] of a stuff label, the same in every image."""
    return colorsys.hls_to_rgb((0.1 + label * _HUE_STEP) % 1.0, 0.5, 0.3)


def probability_colors() -> NDArray[np.uint8]:
    """Return (256, 3) RGB for probabilities from 0, black, through blue grey to 1, white."""
    levels = np.arange(256, dtype=np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_BONE).reshape(256, 3)
    return colors[:, ::-1].astype(np.uint8)  # from BGR
