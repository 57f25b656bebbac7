"""Videos of strangers name no other files; tests/config/test_check.py has configs."""

import pytest

from solo_d2.api.video import Video
from solo_d2.utils.images import ImageError
from tests.pictures import write_video


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A video of three frames in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_video(tmp_path / "secret.avi", num=3)


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
