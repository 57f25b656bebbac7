"""Videos are written atomically, at their rate, and can be played."""

import cv2
import numpy as np
import pytest

from demo import video_files
from demo.video_files import CODECS, VideoError, video_path, writing_video
from solo_d2 import ConfigError
from solo_d2.api.video import Video

pytestmark = pytest.mark.detectron2


def write(path, pictures, error=None):
    with writing_video(path, 10) as writer:
        for frame in pictures:
            writer.write(frame)
        if error is not None:
            raise error
    return writer


def frames(num, height=48, width=64):
    """Grey ones that get brighter, with a red left half."""
    for index in range(num):
        frame = np.full((height, width, 3), 20 * index, np.uint8)
        frame[:, : width // 2, 0] = 250
        yield frame


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_what_is_written_can_be_played(tmp_path, suffix, size):
    path = tmp_path / "new" / f"a{suffix}"
    with writing_video(path, 12.5) as writer:
        for frame in frames(10, *size):
            writer.write(frame)
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Video(path) as video:
        assert video.rate == pytest.approx(12.5, abs=0.01)
        read = list(video)
    assert len(read) == 10
    assert read[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(read[5][10, 10].astype(int) - (250, 100, 100)).max() < 25
    assert np.abs(read[5][-1, -1].astype(int) - 100).max() < 15


def test_another_size_is_fitted_and_a_frame_may_be_repeated(tmp_path):
    with writing_video(tmp_path / "a.avi", 10) as writer:
        writer.write(next(frames(1)), times=3)
        writer.write(next(frames(1, 96, 128)))
        assert writer.num_frames == 4
    with Video(tmp_path / "a.avi") as video:
        assert [frame.shape for frame in video] == [(48, 64, 3)] * 4


def test_nothing_is_left_of_a_video_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write(path, frames(1), error=KeyboardInterrupt())
    with pytest.raises(VideoError, match="no frame"):
        write(path, [])
    monkeypatch.setitem(CODECS, ".mp4", ("zzzz",))
    with pytest.raises(VideoError, match=r"no codec for \.mp4 \(tried zzzz\)"):
        write(path, frames(1))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_codec_that_is_missing_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setitem(CODECS, ".avi", ("zzzz", "MJPG"))
    assert write(tmp_path / "a.avi", frames(1)).codec == "MJPG"


def test_a_file_that_lost_frames_is_an_error(tmp_path, monkeypatch):
    """As on a full disk, of which OpenCV says nothing."""

    open_writer = cv2.VideoWriter

    class Forgetful:
        fourcc = staticmethod(open_writer.fourcc)

        def __init__(self, *args):
            self.writer = open_writer(*args)
            self.isOpened, self.release = self.writer.isOpened, self.writer.release

        def write(self, frame):
            if frame[-1, -1, 0] < 100:
                self.writer.write(frame)

    monkeypatch.setattr(video_files.cv2, "VideoWriter", Forgetful)
    with pytest.raises(VideoError, match="10 frames were written by .*, but 5 can be read"):
        write(tmp_path / "a.avi", frames(10))
    assert not list(tmp_path.iterdir())


def test_where_a_video_goes(tmp_path):
    assert video_path(str(tmp_path), "cam", "") == tmp_path / "cam.mp4"
    assert video_path(str(tmp_path / "new"), "cam", "") == tmp_path / "new" / "cam.mp4"
    assert video_path(str(tmp_path / "a.MKV"), "cam", "") == tmp_path / "a.MKV"
    with pytest.raises(ConfigError, match=r"videos are written as \.mp4"):
        video_path("a.png", "cam", "")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ConfigError, match="would replace the video"):
        video_path(str(tmp_path / "a.mp4"), "cam", str(tmp_path / "a.mp4"))
