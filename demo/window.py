"""The demo's window: its availability, keys and status lines."""

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
# Of any size, and without the buttons and menus of Qt.
_FLAGS = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
_ESCAPE = 27
# Step of the threshold, and its largest value.
_STEP, _MOST = 0.05, 0.95
# Background of text, RGB.
_DARK = (0.1, 0.1, 0.12)
# Largest window at first, width and height.
_LARGEST = (1600, 900)


def why_no_display() -> str | None:
    """Say why windows cannot be shown here; None if they can.

    A window is opened in another process: where it fails, the toolkit may end the whole process.
    """
    if sys.platform.startswith("linux"):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return "there is no display (DISPLAY is not set)"
    probe = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"
    try:
        result = subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "opening a window took over a minute"
    if result.returncode != 0:
        return "this OpenCV cannot open a window (no such display, or a build without windows)"
    return None


def can_show() -> bool:
    """Whether windows can be shown; says why if not."""
    reason = why_no_display()
    if reason:
        print(f"--show: {reason}; going on without a window", file=sys.stderr)
    return reason is None


def show_still(title: str, image: NDArray[np.uint8]) -> bool:
    """Show an image in the demo's window and wait for a key.

    Args:
        title: of the window.
        image: (H, W, 3) uint8, RGB.

    Returns:
        False if the user wants to see no more (q or Escape).
    """
    cv2.namedWindow(WINDOW, _FLAGS)
    cv2.setWindowTitle(WINDOW, title)
    _show(image)
    return cv2.waitKey(0) & 0xFF not in (ord("q"), _ESCAPE)


def _show(image: NDArray[np.uint8]) -> None:
    cv2.imshow(WINDOW, np.ascontiguousarray(image[:, :, ::-1]))


@dataclass
class View:
    """What the keys of the window change.

    Attributes:
        threshold: least score of the instances that are shown.
        class_index: the only class that is shown; None for all.
        paused: whether the picture stands still.
        closed: whether the user wants to see no more.
        saves: pictures that are to be saved.
    """

    threshold: float
    class_index: int | None = None
    paused: bool = False
    closed: bool = False
    saves: int = 0

    def press(self, key: int, present: Sequence[int]) -> bool:
        """Do what a key means.

        Args:
            key: code of the key; other keys than those of the help do nothing.
            present: class indices in the picture, of which "c" takes the next one, then all.

        Returns:
            Whether the picture must be drawn again.
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
            self.class_index = self._next_class(present)
            return True
        return False

    def _next_class(self, present: Sequence[int]) -> int | None:
        after = -1 if self.class_index is None else self.class_index
        return next((index for index in sorted(set(present)) if index > after), None)


def status_lines(
    view: View, seconds: Mapping[str, float], rate: float, class_names: Sequence[str]
) -> list[str]:
    """Format speed and settings for the window.

    Args:
        view: the settings.
        seconds: of each stage for a frame, by name.
        rate: frames a second that come out in the end.
        class_names: of the K classes.
    """
    stages = "  ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    shown = "all classes" if view.class_index is None else class_names[view.class_index]
    paused = "  paused" if view.paused else ""
    return [
        f"{rate:.1f} frames/s   {stages}",
        f"score >= {view.threshold:.2f} (+ -)   {shown} (c)   q quit  p pause  s save{paused}",
    ]


def with_status(picture: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of the picture with lines of text in its upper left corner."""
    picture, size = picture.copy(), text_size(*picture.shape[:2])
    for row, line in enumerate(lines):
        write(picture, line, (0, row * (size * 5 // 4)), _DARK, size)
    return picture


class Window:
    """The window of a video."""

    def __init__(self) -> None:
        self._opened = False

    def show(self, picture: NDArray[np.uint8], milliseconds: int) -> int:
        """Show a picture (H, W, 3) uint8 RGB.

        Args:
            picture: what is shown.
            milliseconds: to wait for a key, at least 1.

        Returns:
            The code of the key that was pressed, 255 for none; that of Escape if the user has
            closed the window.
        """
        if not self._opened:
            cv2.namedWindow(WINDOW, _FLAGS)
            height, width = picture.shape[:2]
            shrink = min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)
            cv2.resizeWindow(WINDOW, max(1, int(width * shrink)), max(1, int(height * shrink)))
            self._opened = True
        _show(picture)
        key = cv2.waitKey(milliseconds) & 0xFF
        return key if _is_visible() else _ESCAPE

    def close(self) -> None:
        """Close the window, if it was opened."""
        if self._opened:
            with contextlib.suppress(cv2.error):  # the user has closed it
                cv2.destroyWindow(WINDOW)
            self._opened = False


def _is_visible() -> bool:
    try:
        return cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # Qt's, where the last window was closed
        return False
