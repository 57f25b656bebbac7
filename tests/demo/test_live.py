"""The demo on videos and cameras: a generated video, a fake camera, a file as a camera."""

import itertools
import json

import cv2
import numpy as np
import pytest

from demo import demo, live, window
from solo_d2.api.video import Video
from solo_d2.utils.commands import Terminated
from tests.api.models import picture
from tests.api.models import run_demo as run
from tests.pictures import write_video

pytestmark = pytest.mark.detectron2


@pytest.fixture
def clip(tmp_path):
    """Seven frames of noise that does not move."""
    return write_video(tmp_path / "clip.mp4", frames=[picture()] * 7)


def frames_of(path):
    with Video(path) as video:
        return video.rate, list(video)


def test_a_video_comes_out_with_its_frames_and_rate(model, clip, tmp_path, capsys):
    outputs = ("--output", tmp_path / "out.mp4", "--json", tmp_path / "all.json")
    masks = ("--save-masks", tmp_path / "masks")
    assert run(model, "--video-input", clip, *outputs, *masks, "--scale", 2) == 0
    rate, frames = frames_of(tmp_path / "out.mp4")
    assert rate == 12.5
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 7
    results = json.loads((tmp_path / "all.json").read_text())
    assert {r["image_id"] for r in results} == set(range(7))
    assert results[0]["file_name"] == f"{clip}#0"
    first, last = ([r["track_id"] for r in results if r["image_id"] == i] for i in (0, 6))
    assert len(set(first)) == len(first) > 0
    assert set(first) & set(last)
    names = sorted(file.name for file in (tmp_path / "masks").iterdir())
    assert names == [f"{index:06}.png" for index in range(7)]
    labels = cv2.imread(str(tmp_path / "masks" / names[0]), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16
    assert labels.max() <= len(first)
    assert "7 frames" in capsys.readouterr().out


def test_panoptic_videos_are_drawn_and_written(panoptic_model, clip, tmp_path):
    args = ("--video-input", clip, "--output", tmp_path / "out.avi", "--max-frames", 2)
    assert run(panoptic_model, *args, "--panoptic", tmp_path / "segments") == 0
    assert len(frames_of(tmp_path / "out.avi")[1]) == 2
    content = json.loads((tmp_path / "segments" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1]
    for entry in content["annotations"]:
        assert (tmp_path / "segments" / "panoptic" / entry["file_name"]).is_file()
        tracks = [s.get("track_id") for s in entry["segments_info"] if "score" in s]
        assert None not in tracks


def test_a_damaged_video_is_reported_and_what_was_read_is_kept(model, tmp_path, capsys):
    whole = write_video(tmp_path / "a.avi", num=30)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    args = ("--video-input", whole, "--json", tmp_path / "all.json")
    code = run(model, *args)
    with Video(whole) as video:
        promised, readable = video.num_frames, len(list(video))
    err = capsys.readouterr().err
    if promised is not None and promised > readable + 2:
        assert code == 1
        assert f"{readable} of {promised} frames could be read" in err
    assert (tmp_path / "all.json").exists()


def test_json_does_not_replace_the_video(model, clip, capsys):
    before = clip.read_bytes()
    assert run(model, "--video-input", clip, "--json", clip) == 2
    assert "would replace the video" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_max_pixels_are_for_images():
    with pytest.raises(SystemExit):
        demo.parse_args(["--weights", "a", "--webcam", "--json", "b", "--max-pixels", "9"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--video-input", "gone.mp4", "--json", "a.json"], "gone.mp4: does not exist"),
        (["--webcam", "gone.mp4", "--json", "a.json"], "gone.mp4: does not exist"),
        (["--video-input", "text.mp4", "--json", "a.json"], "cannot be opened as a video"),
        (["--video-input", "text.mp4", "--output", "a.png"], "videos are written as"),
        (["--webcam", "gone.mp4", "--show"], "add --output or --json"),
        (["--video-input", "text.mp4", "--json", "text.mp4/a.json"], "cannot be created"),
    ],
)
def test_what_cannot_start_says_so(model, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(window, "why_no_display", lambda: "there is no display")
    (tmp_path / "text.mp4").write_text("no video")
    assert run(model, *args) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- cameras


class FakeCamera:
    """A capture of OpenCV's that fails now and then, and breaks at the end."""

    opened = []
    plan = ()

    def __init__(self, source):
        self.opened.append(source)
        self.reads = iter(self.plan)

    def isOpened(self):
        return True

    def get(self, key):
        return {cv2.CAP_PROP_FPS: 10.0}.get(key, -1.0)

    def read(self):
        value = next(self.reads, None)
        if isinstance(value, BaseException):
            raise value
        return value is not None, value

    def release(self):
        pass


@pytest.fixture
def camera(monkeypatch):
    """Makes OpenCV open a fake camera that gives a plan's frames, None where one fails."""
    capture = cv2.VideoCapture

    def start(plan):
        FakeCamera.opened, FakeCamera.plan = [], plan
        monkeypatch.setattr(
            cv2,
            "VideoCapture",
            lambda source: FakeCamera(source) if isinstance(source, int) else capture(source),
        )
        monkeypatch.setattr(live, "_RETRY_PAUSE", 0.001)
        return FakeCamera

    return start


def test_a_camera_may_miss_frames_and_ends_when_it_is_gone(model, camera, tmp_path):
    fake = camera([picture(), None, None, picture(), None])
    args = ("--webcam", 3, "--no-show", "--json", tmp_path / "all.json")
    assert run(model, *args) == 0
    assert fake.opened == [3]
    results = json.loads((tmp_path / "all.json").read_text())
    assert results[-1]["file_name"] == "camera 3#1"


def test_a_file_stands_for_a_camera_and_plays_at_its_pace(model, tmp_path):
    clip = write_video(tmp_path / "clip.avi", num=10, rate=20)
    output = tmp_path / "out.avi"
    assert run(model, "--webcam", clip, "--no-show", "--output", output) == 0
    rate, frames = frames_of(output)
    assert rate == 20
    # As long as the source, even if there was no time for some of its frames.
    assert 9 <= len(frames) <= 14


def test_a_frame_is_repeated_until_the_video_is_as_long_as_its_source():
    class Writer:
        rate, num_frames = 10.0, 0

    demo_live = object.__new__(live.Live)
    demo_live.args, demo_live.writer = demo.parse_args(["--onnx", "m.onnx", "--webcam"]), Writer
    times = []
    for seconds in (0.0, 0.1, 0.55, 0.56):
        times.append(demo_live._times(live.Frame(0, seconds, None)))
        Writer.num_frames += times[-1]
    assert times == [1, 1, 4, 1]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_stop_keeps_what_a_camera_gave_but_no_part_of_a_file(
    model, clip, camera, tmp_path, monkeypatch, capsys, stop, code
):
    def interrupt(seconds):  # of the first frame
        raise stop

    monkeypatch.setattr(live, "times_text", interrupt)
    camera([picture()] * 50)
    args = ("--no-show", "--output", tmp_path / "out.mp4", "--json", tmp_path / "all.json")
    assert run(model, "--video-input", clip, *args) == code
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip.mp4"]
    assert run(model, "--webcam", *args) == 0
    assert len(frames_of(tmp_path / "out.mp4")[1]) >= 1
    assert json.loads((tmp_path / "all.json").read_text())
    assert "stopped" in capsys.readouterr().err


# ---------------------------------------------------------------- the window, without a display


@pytest.fixture
def keys(monkeypatch):
    """Replaces the window by one where keys are pressed as planned; collects what it shows."""
    shown = []

    def press(plan):
        planned = iter(plan)

        class FakeWindow:
            def show(self, picture, milliseconds):
                shown.append((picture, milliseconds))
                return ord(next(planned, "\xff"))

            def close(self):
                shown.append(None)

        monkeypatch.setattr(live, "Window", FakeWindow)
        monkeypatch.setattr(live, "can_show", lambda: True)
        return shown

    return press


def test_keys_stop_pause_and_save(model, clip, tmp_path, keys, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = keys(["\xff", "p", "s", "x", "p", "\xff", "q"])
    assert run(model, "--video-input", clip, "--show", "--output", tmp_path / "o" / "out.mp4") == 0
    assert shown.pop() is None
    assert len(shown) == 7
    # Three times while it stood still: the picture is the same but for the word "paused".
    pictures = [picture for picture, _ in shown]
    assert (pictures[2] == pictures[3]).all()
    saved = tmp_path / "o" / "clip_000001.png"
    assert saved.is_file()
    assert f"saved {saved}" in capsys.readouterr().out
    assert 4 <= len(frames_of(tmp_path / "o" / "out.mp4")[1]) <= 7


def test_threshold_and_class_change_the_picture_at_once(model, clip, keys):
    shown = keys(["p", *"+" * 19, "-", "c", "q"])
    assert run(model, "--video-input", clip, "--show") == 0
    assert shown.pop() is None
    bottoms = [picture[30:] for picture, _ in shown]
    assert (bottoms[0] != bottoms[19]).any()
    # At 0.95 nothing is left, and the picture is the frame alone.
    frame = frames_of(clip)[1][0][30:]
    assert (bottoms[19] == frame).all()


def test_a_camera_opens_a_window_unless_there_is_no_display(model, camera, tmp_path, keys):
    camera([picture()] * 3)
    shown = keys(["q"])
    assert run(model, "--webcam") == 0
    assert shown[-1] is None
    assert len(shown) == 2


def test_an_error_in_the_middle_leaves_no_video(model, clip, tmp_path, monkeypatch):
    count = itertools.count()
    find = live.Live.find

    def fail(self, frame):
        if next(count) == 3:
            raise ZeroDivisionError("in the middle")
        return find(self, frame)

    monkeypatch.setattr(live.Live, "find", fail)
    with pytest.raises(ZeroDivisionError):
        run(model, "--video-input", clip, "--output", tmp_path / "out.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip.mp4"]
