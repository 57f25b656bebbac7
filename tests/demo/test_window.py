"""Keys and status of the window, without a display."""

import cv2
import numpy as np
import pytest

from demo import window
from demo.window import View, Window, status_lines, with_status

pytestmark = pytest.mark.detectron2


def press(view, keys, present=()):
    return [view.press(ord(key), present) for key in keys]


def test_quit_pause_save_and_threshold():
    view = View(0.3)
    assert press(view, "pss+=") == [False, False, False, True, True]
    assert (view.paused, view.saves, view.threshold) == (True, 2, 0.4)
    press(view, " xy\t-_-")
    assert (view.paused, view.closed, view.threshold) == (False, False, 0.25)
    for keys, end in (("-" * 20, 0), ("+" * 40, 0.95)):
        press(view, keys)
        assert view.threshold == end
    assert [view.press(key, ()) for key in (255, 0)] == [False, False]
    press(view, "q")
    assert view.closed
    escaped = View(0.3)
    escaped.press(27, ())
    assert escaped.closed


def test_classes_of_the_picture_come_one_after_another_then_all():
    view = View(0.3)
    seen = []
    for _ in range(4):
        assert press(view, "c", [5, 2, 5, 9]) == [True]
        seen.append(view.class_index)
    assert seen == [2, 5, 9, None]
    press(view, "c", [])
    assert view.class_index is None
    view.class_index = 5
    press(view, "c", [2, 4])
    assert view.class_index is None


def test_status_says_speed_and_settings():
    view = View(0.3, class_index=1, paused=True)
    first, second = status_lines(view, {"read": 0.002, "find": 0.2}, 4.96, ["cat", "dog"])
    assert first == "5.0 frames/s   read 2 ms  find 200 ms"
    assert "score >= 0.30" in second
    assert "dog (c)" in second
    assert second.endswith("paused")
    assert "all classes" in status_lines(View(0.3), {}, 1, ["cat"])[1]
    picture = np.zeros((200, 300, 3), np.uint8)
    drawn = with_status(picture, [first, second])
    assert not picture.any()
    assert drawn[:30].any()
    assert not drawn[60:].any()


def test_a_closed_window_is_escape(monkeypatch):
    calls = []
    for name in ("namedWindow", "resizeWindow", "imshow", "destroyWindow"):
        monkeypatch.setattr(window.cv2, name, lambda *args, name=name: calls.append((name, args)))
    visible = [1.0, 0.0, cv2.error("no window is left")]

    def get_property(*_):
        value = visible.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(window.cv2, "waitKey", lambda wait: 0x100 | ord("p"))
    monkeypatch.setattr(window.cv2, "getWindowProperty", get_property)
    shown = Window()
    shown.close()
    assert not calls
    picture = np.zeros((1800, 1600, 3), np.uint8)
    picture[..., 0] = 255
    assert shown.show(picture, 1) == ord("p")
    assert shown.show(picture, 1) == 27
    assert shown.show(picture, 1) == 27
    shown.close()
    names = [name for name, _ in calls]
    assert names == ["namedWindow", "resizeWindow", *["imshow"] * 3, "destroyWindow"]
    assert calls[1][1][1:] == (800, 900)
    assert calls[2][1][1][0, 0].tolist() == [0, 0, 255]  # OpenCV shows BGR
