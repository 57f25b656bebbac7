"""Write text into pictures, fast enough for video: rendered text is cached."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from solo_d2.visualization.colors import Color
from solo_d2.visualization.labels import LabelRoom

# Brightness of a background above which black text is easier to read than white.
_BRIGHT = 0.55
# Heights of letters, in pixels, to which labels may shrink.
_SMALLER = (11, 9)
# Maximum number of letters in a line, since class names come from files.
_LONGEST = 200


@lru_cache(maxsize=16)
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of Detectron2's overlays, `size` pixels high."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def text_size(height: int, width: int) -> int:
    """Return a height of letters in pixels that suits the size of a picture."""
    return max(11, round((height * width) ** 0.5 / 65))


@lru_cache(maxsize=4096)
def _glyphs(text: str, size: int) -> NDArray[np.float32]:
    """Render text: (H, W) float32 in [0, 1], the coverage of each pixel, with a margin."""
    font = text_font(size)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST])
    ascent, descent = font.getmetrics()
    glyphs, (x, y) = font.getmask2(text, mode="L")
    margin = max(1, size // 5)
    canvas = np.zeros((ascent + descent, max(1, glyphs.size[0] + x) + 2 * margin), np.float32)
    if glyphs.size[0] and glyphs.size[1]:
        array = np.array(glyphs, np.float32).reshape(glyphs.size[::-1]) / 255
        rows = min(len(array), len(canvas) - y)
        canvas[y : y + rows, margin + x : margin + x + array.shape[1]] = array[:rows]
    return canvas


def write(
    picture: NDArray[np.uint8], text: str, place: tuple[int, int], color: Color, size: int
) -> None:
    """Write a line of text on a coloured background, inside the picture if it fits.

    Args:
        picture: (H, W, 3) uint8, modified in place.
        text: the line.
        place: preferred x and y of the upper left corner.
        color: background in [0, 1], in the picture's channel order.
        size: height of the letters in pixels.
    """
    glyphs = _glyphs(text, size)
    height, width = picture.shape[:2]
    x = max(0, min(place[0], width - glyphs.shape[1]))
    y = max(0, min(place[1], height - glyphs.shape[0]))
    part = picture[y : y + glyphs.shape[0], x : x + glyphs.shape[1]]
    cover = glyphs[: part.shape[0], : part.shape[1], None]
    ink = 0.0 if sum(color) / 3 > _BRIGHT else 255.0
    ground = np.array(color, np.float32) * 255
    part[:] = ground + cover * (ink - ground)


def write_labels(
    picture: NDArray[np.uint8],
    labels: Sequence[str],
    boxes: NDArray[np.float32],
    colors: Sequence[Color],
    size: int,
    *,
    room: LabelRoom | None = None,
) -> None:
    """Write each label above its box, or inside if there is no room; small boxes last.

    Args:
        picture: (H, W, 3) uint8, modified in place.
        labels: N texts.
        boxes: (N, 4) XYXY in pixels of the picture.
        colors: N background colours in [0, 1].
        size: height of the letters in pixels.
        room: free places for labels, which shrink to fit or are skipped; None allows any place.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    sizes = [size, *(s for s in _SMALLER if s < size)]
    for index in np.argsort(-areas, kind="stable"):
        label, x, y = labels[index], int(boxes[index, 0]), int(boxes[index, 1])
        if room is None:
            line = _glyphs(label, size).shape[0]
            write(picture, label, (x, y - line if y >= line else y), colors[index], size)
        elif place := room.take(boxes[index], (_glyphs(label, s).shape for s in sizes)):
            write(picture, label, place[1:], colors[index], sizes[place[0]])
