"""Draw outlines of the thing classes and compute their signed distance on the pixel grid.

Only NumPy is needed. An outline is a list of closed polygons in a unit frame (x right, y down,
about [-1, 1]); a second polygon is a hole (even-odd rule). Shape
letters: V vertices, E edges, H W rows and columns.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Polygons = list[FloatArray]


def _arc(start: float, stop: float, num: int) -> FloatArray:
    angles = np.linspace(start, stop, num)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle(num: int) -> FloatArray:
    return _arc(0.0, 2.0 * math.pi * (num - 1) / num, num)


def _star(rng: np.random.Generator) -> Polygons:
    radius = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.38, 0.46))
    return [_circle(10) * radius[:, None]]


def _cross(rng: np.random.Generator) -> Polygons:
    a = rng.uniform(0.27, 0.36)
    sides = [np.array([[a, -1.0], [a, -a], [1.0, -a]])]
    for _ in range(3):
        sides.append(sides[-1] @ np.array([[0.0, 1.0], [-1.0, 0.0]]))
    return [np.concatenate(sides)]


def _crescent(rng: np.random.Generator) -> Polygons:
    offset, radius = rng.uniform(0.42, 0.5), 0.85
    x = (1.0 + offset**2 - radius**2) / (2.0 * offset)
    y = math.sqrt(1.0 - x**2)
    outer = math.atan2(y, x)
    inner = math.atan2(y, x - offset)
    bite = _arc(2.0 * math.pi - inner, inner, 24) * radius + np.array([offset, 0.0])
    return [np.concatenate([_arc(outer, 2.0 * math.pi - outer, 28), bite[1:-1]])]


# Name -> polygons. The order is the class index; category ids in the json are index + 1.
OUTLINES: dict[str, Callable[[np.random.Generator], Polygons]] = {
    "disc": lambda _: [_circle(40)],
    "square": lambda _: [np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])],
    "triangle": lambda rng: [np.array([[rng.uniform(-0.2, 0.2), -1.0], [1.0, 0.75], [-1.0, 0.75]])],
    "star": _star,
    "ring": lambda rng: [_circle(40), _circle(32) * rng.uniform(0.5, 0.62)],
    "cross": _cross,
    "crescent": _crescent,
}


def random_outline(rng: np.random.Generator, name: str, size: float) -> Polygons:
    """Draw an outline of OUTLINES with random details, stretch and rotation.

    Its upright box is centred on (0, 0) and has sqrt(width * height) = size, in pixels. Polygons
    have shape (V, 2), float64, x and y in pixels.
    """
    polygons = OUTLINES[name](rng)
    stretch = math.exp(rng.uniform(-0.28, 0.28)) ** 0.5
    angle = rng.uniform(0.0, 2.0 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[stretch, 0.0], [0.0, 1.0 / stretch]]) @ np.array([[cos, sin], [-sin, cos]])
    polygons = [polygon @ matrix for polygon in polygons]
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    factor = size / math.sqrt(float(np.prod(high - low)))
    return [(polygon - (low + high) / 2.0) * factor for polygon in polygons]


def covered_pixels(polygons: Polygons, x: FloatArray, y: FloatArray) -> NDArray[np.bool_]:
    """Find the points inside an outline (even-odd rule); see `signed_distance`.

    Returns:
        (H, W).
    """
    start, stop = (ends[:, :, None] for ends in _edges(polygons))
    edge = stop - start  # (E, 2, 1)
    crossed = (start[:, 1] > y) != (stop[:, 1] > y)  # (E, H)
    rise = np.where(edge[:, 1] == 0.0, 1.0, edge[:, 1])
    crossing_x = start[:, 0] + (y - start[:, 1]) * edge[:, 0] / rise
    # Each crossing changes the side of all points of its row to the left of it.
    num_left = np.searchsorted(x, crossing_x[crossed])
    row = np.nonzero(crossed)[1]
    shape = len(y), len(x) + 1
    changes = np.bincount(row * shape[1] + num_left, minlength=shape[0] * shape[1]).reshape(shape)
    to_the_right = changes[:, ::-1].cumsum(axis=1)[:, ::-1]
    return to_the_right[:, 1:] % 2 == 1


def signed_distance(polygons: Polygons, x: FloatArray, y: FloatArray) -> FloatArray:
    """Compute the distance of points to an outline, negative inside (even-odd rule).

    Args:
        polygons: closed polygons of shape (V, 2), in pixels.
        x: (W,) x coordinates of the columns, rising.
        y: (H,) y coordinates of the rows, rising.

    Returns:
        (H, W) float64, in pixels.
    """
    nearest = np.full((len(y), len(x)), np.inf)
    # Reused for all edges to stay in the cache.
    along, off_x, off_y = (np.empty_like(nearest) for _ in range(3))
    for start, stop in zip(*_edges(polygons), strict=True):
        edge = stop - start
        dx, dy = x[None, :] - start[0], y[:, None] - start[1]
        np.add(dx * edge[0], dy * edge[1], out=along)
        along /= (edge**2).sum()
        np.clip(along, 0.0, 1.0, out=along)
        np.subtract(dx, np.multiply(along, edge[0], out=off_x), out=off_x)
        np.subtract(dy, np.multiply(along, edge[1], out=off_y), out=off_y)
        off_x *= off_x
        off_y *= off_y
        off_x += off_y
        np.minimum(nearest, off_x, out=nearest)
    distance = np.sqrt(nearest, out=nearest)
    return np.negative(distance, out=distance, where=covered_pixels(polygons, x, y))


def _edges(polygons: Polygons) -> tuple[FloatArray, FloatArray]:
    """Return the start and end points of the edges, (E, 2) each."""
    start = np.concatenate(polygons)
    stop = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    return start, stop
