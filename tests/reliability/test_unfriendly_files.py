"""Configs and videos of strangers run no code, and name no other files."""

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.api.video import Video  # noqa: E402
from solo_d2.config import load_config  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from solo_d2.utils.images import ImageError  # noqa: E402

CONFIGS = {
    "call": "MODEL: !!python/object/apply:os.mkdir [MADE]",
    "name": "MODEL: {WEIGHTS: !!python/name:os.system}",
    "new": "MODEL: !!python/object/new:os.mkdir {args: [MADE]}",
    "alias of itself": "MODEL: &a\n  X: *a\n",
    "its own base": "_BASE_: config.yaml",
    "deep": "MODEL: " + "[" * 1000 + "]" * 1000,
    "deep text": "MODEL: {PIXEL_MEAN: '" + "(" * 500 + ")" * 500 + "'}",
    "no folder": "_BASE_: /",
    "bytes": "\x00\x01",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_run_nothing_and_end(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIGS[kind])
    with pytest.raises(ConfigError, match=r"^[^\n]*$"):
        load_config("config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_honest_aliases_and_bases_are_read(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 3")
    (tmp_path / "config.yaml").write_text(
        "_BASE_: base.yaml\nINPUT: {MIN_SIZE_TEST: &size 700, MAX_SIZE_TEST: *size}"
    )
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert (cfg.SEED, cfg.INPUT.MAX_SIZE_TEST) == (3, 700)


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
