"""The window of the demo: availability, keys and status lines."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2.visualization.text import text_size, write

WINDOW = "solo_d2 demo"
# Resizable, without the buttons and menus of Qt.
_FLAGS = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
_ESCAPE = 27
# Step and maximum of the threshold.
_STEP, _MOST = 0.05, 0.95
# Background of text, RGB.
_DARK = (0.1, 0.1, 0.12)
# Maximum initial width and height.
_LARGEST = (1600, 900)


def why_no_display() -> str | None:
    """Return why windows cannot be shown, or None if they can.

    Opens a window in a subprocess, because some toolkits end the process on failure.
    """
    if sys.platform.startswith("linux"):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return "there is no display (DISPLAY is not set)"
    probe = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"
    try:
        result = subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "opening a window took more than a minute"
    if result.returncode != 0:
        return "OpenCV cannot open a window (wrong display, or a build without GUI)"
    return None


def can_show() -> bool:
    """Return whether windows can be shown; print the reason if not."""
    reason = why_no_display()
    if reason:
        print(f"--show: {reason}; continuing without a window", file=sys.stderr)
    return reason is None


def show_still(title: str, image: NDArray[np.uint8]) -> bool:
    """Show an image (H, W, 3) uint8 RGB and wait for a key; return False for q or Escape."""
    cv2.namedWindow(WINDOW, _FLAGS)
    cv2.setWindowTitle(WINDOW, title)
    _show(image)
    return cv2.waitKey(0) & 0xFF not in (ord("q"), _ESCAPE)


def _show(image: NDArray[np.uint8]) -> None:
    cv2.imshow(WINDOW, np.ascontiguousarray(image[:, :, ::-1]))


@dataclass
class View:
    """Settings that the keys of the window change."""

    threshold: float  # minimum score to show
    class_index: int | None = None  # class to show; None for all
    paused: bool = False
    closed: bool = False  # whether the user quit
    saves: int = 0  # number of pictures to save

    def press(self, key: int, present: Sequence[int]) -> bool:
        """Handle a key code; return whether the picture must be redrawn.

        "c" selects the next of the class indices `present` in the picture, then all classes.
        """
        letter = chr(key) if 0 < key < 128 else ""
        if letter == "q" or key == _ESCAPE:
            self.closed = True
        elif letter and letter in "p ":
            self.paused = not self.paused
        elif letter == "s":
            self.saves += 1
        elif letter and letter in "+=-_":
            step = _STEP if letter in "+=" else -_STEP
            self.threshold = round(min(_MOST, max(0.0, self.threshold + step)), 2)
            return True
        elif letter == "c":
            after = -1 if self.class_index is None else self.class_index
            self.class_index = min((index for index in present if index > after), default=None)
            return True
        return False


def times_text(seconds: Mapping[str, float]) -> str:
    """Format the time of each stage per frame."""
    return "  ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())


def status_lines(
    view: View, seconds: Mapping[str, float], rate: float, class_names: Sequence[str]
) -> list[str]:
    """Format the seconds of each stage, the frames a second, and the settings for the window."""
    shown = "all classes" if view.class_index is None else class_names[view.class_index]
    paused = "  paused" if view.paused else ""
    return [
        f"{rate:.1f} frames/s   {times_text(seconds)}",
        f"score >= {view.threshold:.2f} (+ -)   {shown} (c)   q quit  p pause  s save{paused}",
    ]


def with_status(picture: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """Return a copy of the picture with lines of text in its upper left corner."""
    picture, size = picture.copy(), text_size(*picture.shape[:2])
    for row, line in enumerate(lines):
        write(picture, line, (0, row * (size * 5 // 4)), _DARK, size)
    return picture


class Window:
    """The window of a video."""

    def __init__(self) -> None:
        self._opened = False

    def show(self, picture: NDArray[np.uint8], milliseconds: int) -> int:
        """Show a picture (H, W, 3) uint8 RGB and wait for a key, at least for a millisecond.

        Returns the key code, 255 for none, or that of Escape if the user has closed the window.
        """
        if not self._opened:
            cv2.namedWindow(WINDOW, _FLAGS)
            height, width = picture.shape[:2]
            shrink = min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)
            cv2.resizeWindow(WINDOW, max(1, int(width * shrink)), max(1, int(height * shrink)))
            self._opened = True
        _show(picture)
        key = cv2.waitKey(milliseconds) & 0xFF
        with contextlib.suppress(cv2.error):  # raised by Qt if the last window was closed
            if cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1:
                return key
        return _ESCAPE

    def close(self) -> None:
        """Close the window, if it was opened."""
        if self._opened:
            with contextlib.suppress(cv2.error):  # the user has closed it
                cv2.destroyWindow(WINDOW)
            self._opened = False
