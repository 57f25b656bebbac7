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
# Prefixes of stream addresses.
STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")
# First bytes of files that FFmpeg reads as playlists: HLS, ffconcat, SDP, DASH.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD")
_PLAYLIST_START = 64
# Frames per second if the source reports no plausible rate.
DEFAULT_RATE = 30.0
_MAX_RATE = 1000.0


class Video:
    """An opened video file or camera. Use it in a `with` block, or call `close`.

    Attributes:
        name: what was opened.
        rate: frames per second reported by the source; 30 if that is implausible.
        num_frames: reported by the file, may be inexact; None for cameras and streams.
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
        """Return the next frame, or None at the end."""
        ok, frame = self._capture.read()
        if not ok or frame is None:
            return None
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while (frame := self.read()) is not None:
            yield frame

    def close(self) -> None:
        """Release the source."""
        self._capture.release()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_video(path: str | Path) -> bool:
    """Return whether the name has a video extension."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def _place(source: str | Path | int) -> str | int:
    """Return the source for OpenCV; refuse names that FFmpeg would not open as a plain file."""
    if isinstance(source, int):
        return source
    if str(source).startswith(STREAMS):
        return str(source)
    if "\0" in str(source) or not os.path.exists(source):
        raise ImageError(f"{source}: does not exist")
    if os.path.isdir(source):
        raise ImageError(f"{source}: is a folder, not a video")
    if os.path.isfile(source):  # no pipe
        try:
            with open(source, "rb") as file:
                start = file.read(_PLAYLIST_START).lstrip(b"\xef\xbb\xbf \t\r\n")
        except OSError as error:
            raise ImageError(f"{source}: {error.strerror}") from error
        if not start:
            raise ImageError(f"{source}: the file is empty")
        if start.startswith(_PLAYLISTS):
            raise ImageError(f"{source}: is a playlist, not a video; pass the video that it names")
    return os.path.abspath(source)
