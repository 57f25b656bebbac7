"""Draw on enlarged pictures, and arrange them in rows under titles.

Images are (H, W, 3) uint8 RGB; points, boxes and polygons are (x, y) in pixels of the original
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from solo_d2.visualization.colors import INK, PAPER, probability_colors
from solo_d2.visualization.text import text_font

Color = tuple[int, int, int]

# Lines of a grid.
GRID = (120, 126, 138)

# OpenCV's drawing functions take coordinates in units of 2^-_SHIFT pixels.
_SHIFT = 4


class Plate:
    """An enlarged image to draw on; coordinates are those of the original image.

    Attributes:
        picture: the enlarged image, contiguous.
        scale: pixels of the picture per pixel of the image.
    """

    def __init__(self, image: NDArray[np.uint8], scale: float, *, smooth: bool = True):
        """Enlarge an image, with smooth or nearest-neighbour interpolation."""
        height, width = image.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        kind = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
        large = cv2.resize(image, size, interpolation=kind)
        self.picture: NDArray[np.uint8] = np.ascontiguousarray(large, dtype=np.uint8)
        self.scale = scale

    def fill(self, box: Sequence[float], color: Color, opacity: float) -> None:
        """Tint a box (XYXY)."""
        left, top, right, bottom = (max(0, round(value * self.scale)) for value in box)
        part = self.picture[top:bottom, left:right]
        part[:] = np.rint(part * (1 - opacity) + np.array(color) * opacity)

    def tint(self, mask: NDArray[np.bool_], color: Color, opacity: float) -> None:
        """Tint a mask (H, W) of the image."""
        large = self._enlarged(mask)
        self.picture[large] = np.rint(
            self.picture[large] * (1 - opacity) + np.array(color) * opacity
        )

    def outline(self, mask: NDArray[np.bool_], color: Color, width: int) -> None:
        """Draw the outline of a mask (H, W) of the image."""
        large = self._enlarged(mask).astype(np.uint8)
        lines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(self.picture, lines, -1, color, width, cv2.LINE_AA)

    def _enlarged(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        height, width = self.picture.shape[:2]
        return cv2.resize(mask.astype(np.float32), (width, height)) > 0.5

    def rectangle(self, box: Sequence[float], color: Color, width: int) -> None:
        """Draw the edges of a box (XYXY)."""
        left, top, right, bottom = (self._fixed(value) for value in box)
        cv2.rectangle(self.picture, (left, top), (right, bottom), color, width, cv2.LINE_AA, _SHIFT)

    def line(self, start: Sequence[float], end: Sequence[float], color: Color, width: int) -> None:
        """Draw a line."""
        ends = [(self._fixed(point[0]), self._fixed(point[1])) for point in (start, end)]
        cv2.line(self.picture, ends[0], ends[1], color, width, cv2.LINE_AA, _SHIFT)

    def dot(self, point: Sequence[float], color: Color, radius: int) -> None:
        """Draw a filled circle of a radius in pixels of the picture, with a dark edge."""
        place = self._fixed(point[0]), self._fixed(point[1])
        for size, paint in ((radius + 2, INK), (radius, color)):
            cv2.circle(self.picture, place, size << _SHIFT, paint, -1, cv2.LINE_AA, _SHIFT)

    def grid(self, pitch: tuple[float, float], side: int, color: Color, width: int = 1) -> None:
        """Draw the lines of S x S cells of a height and width."""
        height, wide = side * pitch[0], side * pitch[1]
        for index in range(1, side):
            self.line((0, index * pitch[0]), (wide, index * pitch[0]), color, width)
            self.line((index * pitch[1], 0), (index * pitch[1], height), color, width)

    def _fixed(self, value: float) -> int:
        return round(value * self.scale * (1 << _SHIFT))


@dataclass(frozen=True)
class Panel:
    """A picture with a title above it and a caption, maybe of several lines, below it."""

    picture: NDArray[np.uint8]
    title: str = ""
    caption: str = ""


def arrange(
    rows: Sequence[Sequence[Panel]], *, font_size: int = 17, gap: int = 14
) -> NDArray[np.uint8]:
    """Arrange panels in rows on white paper, aligned at the upper edge of their pictures.

    Font size and the gap between and around panels are in pixels.
    """
    if not any(rows):
        raise ValueError("there is no panel to arrange")
    line = round(1.35 * font_size)
    above = [line * any(panel.title for panel in row) for row in rows]
    below = [line * max(_num_lines(panel.caption) for panel in row) for row in rows]
    heights = [max(panel.picture.shape[0] for panel in row) for row in rows]
    width = max(sum(_width(panel, font_size) + gap for panel in row) for row in rows)
    total = sum(above) + sum(below) + sum(heights) + gap * (len(rows) + 1)
    canvas = Image.new("RGB", (width + gap, total), PAPER)
    pen, font = ImageDraw.Draw(canvas), text_font(font_size)
    y = gap
    for row, over, under, height in zip(rows, above, below, heights, strict=True):
        x = gap
        for panel in row:
            pen.text((x, y), panel.title, fill=INK, font=font)
            canvas.paste(Image.fromarray(panel.picture), (x, y + over))
            bottom = y + over + panel.picture.shape[0] + gap // 4
            pen.multiline_text((x, bottom), panel.caption, fill=INK, font=font, spacing=4)
            x += _width(panel, font_size) + gap
        y += over + height + under + gap
    return np.array(canvas)


def _num_lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _width(panel: Panel, font_size: int) -> int:
    font = text_font(font_size)
    lines = [panel.title, *panel.caption.split("\n")]
    return max(panel.picture.shape[1], *(round(font.getlength(line)) for line in lines))


def heat_map(image: NDArray[np.uint8], values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Draw values (S, S) in [0, 1] of grid cells over an image; `size` is the longer side."""
    plate = Plate(image, size / max(image.shape[:2]))
    levels = np.rint(255 * values).astype(np.uint8)
    shape = plate.picture.shape[1], plate.picture.shape[0]
    large = cv2.resize(levels, shape, interpolation=cv2.INTER_NEAREST)
    colors = cv2.applyColorMap(large, cv2.COLORMAP_INFERNO)[:, :, ::-1]
    return np.rint(0.3 * plate.picture + 0.7 * colors).astype(np.uint8)


def grey_map(values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Draw values (H, W) in [0, 1] in the colours of activation sheets; `size` as above."""
    levels = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return Plate(probability_colors()[levels], size / max(levels.shape)).picture


def signed_map(values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Draw values (H, W) as squares: blue below zero, red above, white at zero."""
    scaled = (values / max(1e-9, np.abs(values).max()))[..., None]
    red, blue = np.array([200, 30, 40]), np.array([30, 80, 200])
    ends = np.where(scaled > 0, red, blue)
    picture = np.rint(255 + np.abs(scaled) * (ends - 255.0)).astype(np.uint8)
    return Plate(picture, size / max(picture.shape[:2]), smooth=False).picture


def as_square(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reshape values (N,) to the smallest square that holds them, padded with zeros."""
    side = int(np.ceil(len(values) ** 0.5))
    return np.pad(values, (0, side * side - len(values))).reshape(side, side)
