"""Configs and videos of strangers run no code, and name no other files."""

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.api.video import Video  # noqa: E402
from solo_d2.config import load_config  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from solo_d2.utils.images import ImageError  # noqa: E402


def config_texts():
    return {
        "call": "MODEL: !!python/object/apply:os.mkdir [MADE]",
        "name": "MODEL: {WEIGHTS: !!python/name:os.system}",
        "new": "MODEL: !!python/object/new:os.mkdir {args: [MADE]}",
        "alias of itself": "MODEL: &a\n  X: *a\n",
        "its own base": "_BASE_: config.yaml",
        "deep": "MODEL: " + "[" * 3000 + "]" * 3000,
        "deep text": "MODEL: {PIXEL_MEAN: '" + "(" * 500 + ")" * 500 + "'}",
        "no folder": "_BASE_: /",
        "bytes": "\x00\x01",
    }


@pytest.mark.parametrize("kind", config_texts())
def test_configs_run_nothing_and_end(tmp_path, kind):
    made = tmp_path / "made"
    (tmp_path / "config.yaml").write_text(config_texts()[kind].replace("MADE", str(made)))
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "config.yaml"))
    assert "\n" not in str(caught.value)
    assert not made.exists()


def test_honest_aliases_and_bases_are_read(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 3")
    (tmp_path / "config.yaml").write_text(
        "_BASE_: base.yaml\nINPUT: {MIN_SIZE_TEST: &size 700, MAX_SIZE_TEST: *size}"
    )
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert (cfg.SEED, cfg.INPUT.MAX_SIZE_TEST) == (3, 700)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.m3u8", "#EXTM3U\n#EXTINF:1,\nSECRET\n"),
        ("a.mp4", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n"),
        ("a.avi", "ffconcat version 1.0\nfile secret.avi\n"),
        ("a.mpd", "<?xml version='1.0'?><MPD></MPD>"),
        ("a.sdp", "\ufeffv=0\nc=IN IP4 127.0.0.1\n"),
    ],
)
def test_playlists_are_not_followed(tmp_path, name, content):
    secret = tmp_path / "secret.avi"
    write_video(secret)
    (tmp_path / name).write_text(content.replace("SECRET", str(secret)))
    with pytest.raises(ImageError, match="is a playlist"):
        Video(tmp_path / name)


def write_video(file):
    import cv2

    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for value in (0, 100, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()


@pytest.mark.parametrize(
    "protocol", ["concat:", "subfile,,start,0,end,0,,:", "file:", "data:,", "pipe:"]
)
def test_names_are_files_and_no_protocols(tmp_path, protocol, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("secret.avi")
    with pytest.raises(ImageError, match="does not exist"):
        Video(f"{protocol}secret.avi")
    named_so = Path(f"{protocol.replace('/', '')}b.avi")
    Path("secret.avi").rename(named_so)
    with Video(named_so) as video:  # a file may have any name
        assert len(list(video)) == 3
