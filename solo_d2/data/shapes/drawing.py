"""Draw an image of the generated data set: pixels, visible instance masks and the stuff map.

Positions (NumPy only) and colours use separate streams of random numbers, so masks depend neither
on colours nor on OpenCV.
Shape letters: N instances, P pixels, H W rows and columns.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2.data.shapes.outlines import (
    OUTLINES,
    FloatArray,
    Polygons,
    covered_pixels,
    random_outline,
    signed_distance,
)
from solo_d2.data.shapes.textures import (
    OBJECT_PATTERNS,
    STUFF_TEXTURES,
    Image,
    object_pattern,
    random_colour,
    smooth_noise,
)

THING_CLASSES = tuple(OUTLINES)
STUFF_CLASSES = tuple(STUFF_TEXTURES)
SPLITS = ("train", "val")

# Sides of an image, in pixels, both ends inclusive.
SIDE_RANGE = (104, 128)
# Share of images without objects.
EMPTY_SHARE = 0.045
# Probabilities of 1, 2, ... objects in the others.
COUNT_CHANCES = (0.15, 0.25, 0.25, 0.2, 0.1, 0.05)
# Size of an object, sqrt(width * height) of its box in pixels: a few tiny ones, otherwise
# log-uniform. Large ones often do not fit and are drawn again, so about 4 % end up tiny.
TINY_SHARE = 0.015
TINY_RANGE = (7.0, 11.0)
SIZE_RANGE = (38.0, 96.0)
# At least this share of the area and this many pixels of each object are visible. Objects that
# would violate this, for themselves or for others, are not drawn: all drawn objects are annotated.
MIN_VISIBLE_SHARE = 0.75
MIN_VISIBLE_PIXELS = 14
# Each class has a typical colour. Most objects have a hue within this many turns of it (the
# classes' hues divide the circle); the others have any hue.
TYPICAL_SHARE = 0.9
HUE_SPREAD = 0.05
# Colour distance (RGB, 0 to 255) of an object to the pixels around its outline.
MIN_CONTRAST = 75.0
# Largest extent of a shadow beyond an object's box, in pixels.
MARGIN = 8


@dataclass(frozen=True)
class Drawing:
    """An image and its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: (N, H, W) bool, the visible part of each object; disjoint and not empty.
        classes: (N,) int64, index into THING_CLASSES.
        stuff: (H, W) uint8, index into STUFF_CLASSES, also behind objects.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    classes: NDArray[np.int64]
    stuff: NDArray[np.uint8]


@dataclass(frozen=True)
class _Object:
    """A placed outline. Its window starts at row `top` and column `left`, possibly outside.

    Attributes:
        x: columns of the window, relative to the outline.
        y: rows of the window, relative to the outline.
        covered: (rows, columns) bool, the pixels of the window inside the outline.
    """

    thing: int
    size: float
    center: tuple[float, float]
    top: int
    left: int
    polygons: Polygons
    x: FloatArray
    y: FloatArray
    covered: NDArray[np.bool_]

    @cached_property
    def area(self) -> int:
        """Number of pixels inside the outline."""
        return int(np.count_nonzero(self.covered))

    @cached_property
    def distance(self) -> FloatArray:
        """Signed distance to the outline over the window; expensive, for painted objects only."""
        return signed_distance(self.polygons, self.x, self.y)

    def windows(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the rows and columns of the window in the image, and those inside the window."""
        rows, columns = self.covered.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + rows, height), min(self.left + columns, width)
        inner = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return (slice(top, bottom), slice(left, right)), inner


def draw_image(seed: int, split: str, index: int) -> Drawing:
    """Draw image `index` of a split of SPLITS; it depends on the three arguments alone."""
    streams = np.random.SeedSequence([seed, SPLITS.index(split), index]).spawn(2)
    places, paint = (np.random.default_rng(stream) for stream in streams)
    height, width = (int(side) for side in places.integers(*SIDE_RANGE, 2, endpoint=True))
    stuff = _stuff_map(places, height, width)
    objects, owner = _place_objects(places, height, width)

    canvas = _paint_stuff(paint, stuff)
    for item in objects:
        _paint_object(paint, canvas, item)
    masks = owner[None] == np.arange(len(objects))[:, None, None]
    classes = np.array([item.thing for item in objects], np.int64)
    return Drawing(_develop(paint, canvas), masks, classes, stuff)


def _stuff_map(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Draw two to four stuff regions with smooth borders, each at least 4 % of the image."""
    chosen = rng.permutation(len(STUFF_CLASSES))[: rng.integers(2, len(STUFF_CLASSES) + 1)]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    heights = np.full((len(STUFF_CLASSES), height, width), -np.inf)
    for stuff in chosen:
        angle = rng.uniform(0.0, 2.0 * math.pi)
        ramp = 1.2 * (x * math.cos(angle) + y * math.sin(angle))
        down = {"sky": -1.2, "grass": 0.8, "water": 0.8}.get(STUFF_CLASSES[stuff], 0.0)
        heights[stuff] = ramp + down * y + 0.5 * smooth_noise(rng, height, width, 1.6)
    result = heights.argmax(axis=0)
    for stuff in chosen:
        if (result == stuff).mean() < 0.04 and len(np.unique(result)) > 1:
            heights[stuff] = -np.inf
            result = heights.argmax(axis=0)
    return result.astype(np.uint8)


def _place_objects(
    rng: np.random.Generator, height: int, width: int
) -> tuple[list[_Object], NDArray[np.int16]]:
    """Place objects back to front; also return the visible one of each pixel, (H, W), or -1."""
    owner = np.full((height, width), -1, np.int16)
    objects: list[_Object] = []
    if rng.random() < EMPTY_SHARE:
        return objects, owner
    wanted = 1 + int(rng.choice(len(COUNT_CHANCES), p=COUNT_CHANCES))
    for attempt in range(12 * wanted):
        if len(objects) == wanted or (objects and attempt >= 5 * wanted):
            break
        candidate = _random_object(rng, height, width, objects)
        outside, inside = candidate.windows(height, width)
        trial = owner.copy()
        trial[outside][candidate.covered[inside]] = len(objects)
        if all(_in_sight(item, trial == i) for i, item in enumerate([*objects, candidate])):
            objects.append(candidate)
            owner = trial
    return objects, owner


def _in_sight(item: _Object, visible: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(visible) >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * item.area))


def _random_object(
    rng: np.random.Generator, height: int, width: int, others: list[_Object]
) -> _Object:
    thing = int(rng.integers(len(THING_CLASSES)))
    if rng.random() < TINY_SHARE:
        size = rng.uniform(*TINY_RANGE)
    else:
        size = math.exp(rng.uniform(math.log(SIZE_RANGE[0]), math.log(SIZE_RANGE[1])))
    polygons = random_outline(rng, THING_CLASSES[thing], size)
    center = _random_center(rng, height, width, size, others)
    low, high = polygons[0].min(axis=0) + center, polygons[0].max(axis=0) + center
    left, top = (math.floor(value) - MARGIN for value in low)
    right, bottom = (math.ceil(value) + MARGIN for value in high)
    x = np.arange(left, right) + 0.5 - center[0]
    y = np.arange(top, bottom) + 0.5 - center[1]
    covered = covered_pixels(polygons, x, y)
    return _Object(thing, size, center, top, left, polygons, x, y, covered)


def _random_center(
    rng: np.random.Generator, height: int, width: int, size: float, others: list[_Object]
) -> tuple[float, float]:
    """Draw a center inside the image, at its border (15 %), or at another object (20 %)."""
    choice = rng.random()
    if choice < 0.15:
        along, off = rng.random(), rng.uniform(-0.15, 0.35) * size
        side = rng.integers(4)
        x = (along * width, along * width, off, width - off)[side]
        y = (off, height - off, along * height, along * height)[side]
        return float(x), float(y)
    if choice < 0.35 and others:
        other = others[rng.integers(len(others))]
        angle = rng.uniform(0.0, 2.0 * math.pi)
        reach = rng.uniform(0.55, 1.05) * (size + other.size) / 2.0
        x, y = other.center[0] + reach * math.cos(angle), other.center[1] + reach * math.sin(angle)
        return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))
    inset = min(size / 2.0, height / 2.0 - 1.0, width / 2.0 - 1.0)
    return rng.uniform(inset, width - inset), rng.uniform(inset, height - inset)


def _paint_stuff(rng: np.random.Generator, stuff: NDArray[np.uint8]) -> Image:
    height, width = stuff.shape
    canvas = np.zeros((height, width, 3), np.float32)
    for index, painter in enumerate(STUFF_TEXTURES.values()):
        region = (stuff == index).astype(np.float32)
        if region.any():
            canvas += painter(rng, height, width) * cv2.GaussianBlur(region, (0, 0), 0.7)[..., None]
    return canvas


def _paint_object(rng: np.random.Generator, canvas: Image, item: _Object) -> None:
    outside, inside = item.windows(*canvas.shape[:2])
    distance = item.distance[inside].astype(np.float32)
    behind = canvas[outside]
    hues = (0.0, 1.0)
    if rng.random() < TYPICAL_SHARE:
        typical = item.thing / len(THING_CLASSES)
        hues = (typical - HUE_SPREAD, typical + HUE_SPREAD)
    first, second = _contrasting_colours(rng, behind[np.abs(distance) < 3.0], hues)
    rows, columns = outside
    x = (np.arange(columns.start, columns.stop)[None, :] + 0.5 - item.center[0]).astype(np.float32)
    y = (np.arange(rows.start, rows.stop)[:, None] + 0.5 - item.center[1]).astype(np.float32)

    if rng.random() < 0.5:
        behind *= 1.0 - _shadow(rng, item, canvas.shape[:2])[..., None]
    pattern = OBJECT_PATTERNS[rng.integers(len(OBJECT_PATTERNS))]
    weight = object_pattern(rng, pattern, x, y, item.size)[..., None]
    colour = first + (second - first) * weight
    light = rng.uniform(-0.3, 0.3, 2)
    shade = 1.0 + (x * light[0] + y * light[1]) / item.size
    shade *= 1.0 - rng.uniform(0.0, 0.25) * np.clip(1.0 + distance / (0.2 * item.size), 0.0, 1.0)
    alpha = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    behind += (colour * shade[..., None] - behind) * alpha


def _shadow(rng: np.random.Generator, item: _Object, shape: tuple[int, int]) -> Image:
    """Make a soft shadow, shifted by a few pixels, over the object's window of the canvas."""
    reach = max(1, min(MARGIN // 2, round(item.size / 12)))
    shift = rng.integers(-reach, reach + 1, 2)
    moved = np.roll(item.distance, (int(shift[0]), int(shift[1])), axis=(0, 1))
    _, inside = item.windows(*shape)
    strength = rng.uniform(0.15, 0.45)
    return strength * np.clip(0.5 - moved[inside] / (reach + 1.0), 0.0, 1.0).astype(np.float32)


def _contrasting_colours(
    rng: np.random.Generator, around: Image, hues: tuple[float, float]
) -> tuple[Image, Image]:
    """Choose two colours that differ from most pixels (P, 3) around; the first has such a hue."""
    best = (-1.0, around[0], around[0])
    for _ in range(20):
        first = random_colour(rng, hues, (0.65, 1.0), (0.5, 1.0))
        second = first * rng.uniform(0.55, 0.8) if rng.random() < 0.8 else random_colour(rng)
        gaps = [np.linalg.norm(around - colour, axis=1) for colour in (first, second)]
        contrast = min(float(np.quantile(gap, 0.07)) for gap in gaps)
        if contrast > best[0]:
            best = (contrast, first, second)
        if contrast >= MIN_CONTRAST:
            break
    return best[1], best[2]


def _develop(rng: np.random.Generator, canvas: Image) -> NDArray[np.uint8]:
    """Add uneven light, slight blur and sensor noise."""
    height, width = canvas.shape[:2]
    light = 1.0 + rng.uniform(0.0, 0.12) * smooth_noise(rng, height, width, 0.8)
    canvas = canvas * light[..., None] * rng.uniform(0.85, 1.1)
    blur = rng.uniform(0.0, 0.7)
    if blur > 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), blur)
    grain = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(1.0, 7.0)
    return np.clip(np.rint(canvas + grain), 0, 255).astype(np.uint8)
