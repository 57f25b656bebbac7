"""Draw colours and textures of stuff regions and objects. Colours are RGB float32, 0 to 255.

Masks and stuff maps do not depend on this module.
"""

import colorsys
import math

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def random_colour(
    rng: np.random.Generator,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.25, 1.0),
    value: tuple[float, float] = (0.2, 1.0),
) -> Image:
    """Draw a colour, (3,) float32, from ranges of HSV; the hue is periodic with period 1."""
    parts = [rng.uniform(*span) for span in (hue, saturation, value)]
    rgb = colorsys.hsv_to_rgb(parts[0] % 1.0, parts[1], parts[2])
    return np.array([255.0 * part for part in rgb], np.float32)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cycles: float) -> Image:
    """Sum six cosines of up to `cycles` periods per 128 pixels; (H, W), about [-1, 1]."""
    y, x = np.arange(height)[:, None] / 128.0, np.arange(width)[None, :] / 128.0
    total = np.zeros((height, width))
    term = np.empty_like(total)
    for _ in range(6):
        angle, phase = rng.uniform(0.0, 2.0 * math.pi, 2)
        rate = 2.0 * math.pi * cycles * rng.uniform(0.35, 1.0)
        across, down = rate * math.cos(angle) * x, rate * math.sin(angle) * y + phase
        # cos(across + down) of one cosine and sine per row and column
        np.multiply(np.cos(across), np.cos(down), out=term)
        term -= np.sin(across) * np.sin(down)
        total += term
    return (total / 3.0).astype(np.float32)


def _grain(rng: np.random.Generator, height: int, width: int, blur: tuple[float, float]) -> Image:
    """Draw noise of unit variance, (H, W), smoothed by (x, y) pixels."""
    noise = rng.standard_normal((height, width), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=blur[0], sigmaY=blur[1])
    noise *= 1.0 / (float(noise.std()) + 1e-6)
    return noise.astype(np.float32)


def _mix(first: Image, second: Image, weight: Image) -> Image:
    """Blend two colours by a (H, W) weight in [0, 1]; (H, W, 3)."""
    return first + (second - first) * np.clip(weight, 0.0, 1.0)[..., None]


def _sky(rng: np.random.Generator, height: int, width: int) -> Image:
    top = random_colour(rng, (0.54, 0.64), (0.15, 0.4), (0.55, 0.95))
    bottom = random_colour(
        rng, (0.5, 0.62) if rng.random() < 0.75 else (0.02, 0.1), (0.05, 0.2), (0.85, 1.0)
    )
    ramp = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    clouds = smooth_noise(rng, height, width, 4.0) + 0.5 * smooth_noise(rng, height, width, 9.0)
    white = np.full(3, rng.uniform(215.0, 250.0), np.float32)
    cover = np.clip((clouds - rng.uniform(0.1, 0.6)) * rng.uniform(0.4, 1.0), 0.0, 0.9)
    sky = _mix(top, bottom, ramp)
    return sky + (white - sky) * cover.astype(np.float32)[..., None]


def _grass(rng: np.random.Generator, height: int, width: int) -> Image:
    dark = random_colour(rng, (0.2, 0.38), (0.25, 0.45), (0.15, 0.4))
    light = random_colour(rng, (0.17, 0.34), (0.2, 0.4), (0.45, 0.75))
    blades = _grain(rng, height, width, (0.7, rng.uniform(1.2, 2.5)))
    patches = smooth_noise(rng, height, width, 5.0)
    return _mix(dark, light, 0.45 + 0.18 * blades + 0.2 * patches)


def _water(rng: np.random.Generator, height: int, width: int) -> Image:
    deep = random_colour(rng, (0.47, 0.6), (0.3, 0.5), (0.2, 0.5))
    crest = random_colour(rng, (0.45, 0.58), (0.1, 0.25), (0.6, 0.9))
    warp = smooth_noise(rng, height, width, 3.0) + 0.4 * smooth_noise(rng, height, width, 8.0)
    period = rng.uniform(6.0, 12.0)
    rows = np.arange(height)[:, None]
    waves = np.sin(2.0 * math.pi * rows / period + 3.0 * warp)
    return _mix(deep, crest, (0.3 + 0.25 * waves + 0.1 * warp).astype(np.float32))


def _brick(rng: np.random.Generator, height: int, width: int) -> Image:
    stone = random_colour(rng, (-0.02, 0.1), (0.12, 0.38), (0.35, 0.75))
    mortar = np.full(3, rng.uniform(120.0, 210.0), np.float32) + stone * 0.1
    course, length = rng.uniform(7.0, 12.0), rng.uniform(14.0, 26.0)
    tilt = rng.uniform(-0.12, 0.12)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x + tilt * y, y - tilt * x
    row = np.floor(y / course)
    column = np.floor(x / length + 0.5 * (row % 2))
    gap = np.minimum((y / course) % 1.0 * course, (x / length + 0.5 * (row % 2)) % 1.0 * length)
    tone = np.sin(row * 12.9898 + column * 78.233) * 43758.5453
    shade = 0.85 + 0.3 * (tone - np.floor(tone)) + 0.05 * _grain(rng, height, width, (0.8, 0.8))
    return mortar + (stone * shade[..., None] - mortar) * np.clip(gap - 0.7, 0.0, 1.0)[..., None]


# Name -> painter of a whole (H, W, 3) canvas. The order is the index in the stuff map.
STUFF_TEXTURES = {"sky": _sky, "grass": _grass, "water": _water, "brick": _brick}

OBJECT_PATTERNS = ("plain", "gradient", "stripes", "checks", "dots", "speckle")


def object_pattern(
    rng: np.random.Generator, pattern: str, x: Image, y: Image, size: float
) -> Image:
    """Compute the weight of an object's second colour, (H, W) float32 in [0, 1].

    x (1, W) and y (H, 1) are relative to the object's center; size is the object's, all in pixels.
    """
    shape = np.broadcast_shapes(x.shape, y.shape)
    if pattern == "plain":
        return np.zeros(shape, np.float32)
    angle = rng.uniform(0.0, math.pi)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    period = max(size * rng.uniform(0.22, 0.4), 3.0)
    if pattern == "gradient":
        return np.clip(u / size + 0.5, 0.0, 1.0).astype(np.float32)
    if pattern == "stripes":
        return np.clip(0.5 + period * 0.4 * np.sin(2.0 * math.pi * u / period), 0.0, 1.0)
    if pattern == "checks":
        waves = np.sin(2.0 * math.pi * u / period) * np.sin(2.0 * math.pi * v / period)
        return np.clip(0.5 + period * 0.4 * waves, 0.0, 1.0)
    if pattern == "dots":
        waves = np.cos(2.0 * math.pi * u / period) + np.cos(2.0 * math.pi * v / period)
        return np.clip((waves - 0.7) * period * 0.3, 0.0, 1.0)
    grain = _grain(rng, shape[0], shape[1], (0.9, 0.9))
    return np.clip(0.5 + 0.5 * grain, 0.0, 1.0)
