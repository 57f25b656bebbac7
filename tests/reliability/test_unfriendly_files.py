"""Videos of strangers name no other files; tests/config/test_check.py has configs."""

import cv2
import numpy as np
import pytest

from solo_d2.api.video import Video
from solo_d2.utils.images import ImageError


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A video of three frames in the working folder."""
    monkeypatch.chdir(tmp_path)
    writer = cv2.VideoWriter("secret.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for value in (0, 100, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return tmp_path / "secret.avi"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.m3u8", "#EXTM3U\n#EXTINF:1,\nsecret.avi\n"),
        ("a.mp4", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n"),
        ("a.avi", "ffconcat version 1.0\nfile secret.avi\n"),
        ("a.mpd", "<?xml version='1.0'?><MPD></MPD>"),
        ("a.sdp", "\ufeffv=0\nc=IN IP4 127.0.0.1\n"),
    ],
)
def test_playlists_are_not_followed(secret, name, content):
    secret.with_name(name).write_text(content)
    with pytest.raises(ImageError, match=f"{name}.* playlist"):
        Video(name)


@pytest.mark.parametrize("protocol", ["concat:", "subfile,,start,0,end,0,,:", "file:", "data:,"])
def test_names_are_files_and_no_protocols(secret, protocol):
    with pytest.raises(ImageError, match="does not exist"):
        Video(f"{protocol}secret.avi")
    secret.rename(f"{protocol}b.avi")
    with Video(f"{protocol}b.avi") as video:  # a file may have any name
        assert len(list(video)) == 3
