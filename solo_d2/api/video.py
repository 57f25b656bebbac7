"""Video files, frame by frame. Frames are (H, W, 3) uint8 RGB."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2.utils.images import ImageError

VIDEO_EXTENSIONS = frozenset(
    ".avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
# How the addresses of streams begin.
STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")
# How files begin that FFmpeg takes for playlists: HLS, its own, SDP, DASH.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD")
_PLAYLIST_START = 64
# Frames a second where a source names none that can be.
DEFAULT_RATE = 30.0
_MAX_RATE = 1000.0


class Video:
    """An opened video file or camera. Use it in a `with` block, or call `close`.

    Attributes:
        name: what was opened.
        rate: frames a second, as the source says; 30 where it says nothing that can be.
        num_frames: as the file says, which may be wrong by some; None for cameras and streams.
    """

    def __init__(self, source: str | Path | int):
        """Open a source.

        Args:
            source: name of a file, address of a stream (such as rtsp://...; `STREAMS`) or index of
                a camera. A file that is a playlist is refused: it names other files or addresses.

        Raises:
            ImageError: it cannot be opened.
        """
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self._capture: Any = cv2.VideoCapture(_place(source))
        if not self._capture.isOpened():
            self._capture.release()
            raise ImageError(f"{self.name}: cannot be opened as a video")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= _MAX_RATE else DEFAULT_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames = round(count) if math.isfinite(count) and count > 0 else None

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame; None if there is none."""
        ok, frame = self._capture.read()
        if not ok or frame is None:
            return None
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while (frame := self.read()) is not None:
            yield frame

    def close(self) -> None:
        """Let the source go."""
        self._capture.release()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_video(path: str | Path) -> bool:
    """Whether the name is that of a video file."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def _place(source: str | Path | int) -> str | int:
    """What OpenCV is to open: no name that FFmpeg takes for something else than a file."""
    if isinstance(source, int):
        return source
    if str(source).startswith(STREAMS):
        return str(source)
    if "\0" in str(source) or not os.path.exists(source):
        raise ImageError(f"{source}: does not exist")
    if os.path.isdir(source):
        raise ImageError(f"{source}: is a folder, and no video")
    if os.path.isfile(source):  # no pipe
        try:
            with open(source, "rb") as file:
                start = file.read(_PLAYLIST_START).lstrip(b"\xef\xbb\xbf \t\r\n")
        except OSError as error:
            raise ImageError(f"{source}: {error.strerror}") from error
        if not start:
            raise ImageError(f"{source}: the file is empty")
        if start.startswith(_PLAYLISTS):
            raise ImageError(f"{source}: is a playlist, and no video; give what it names")
    return os.path.abspath(source)
