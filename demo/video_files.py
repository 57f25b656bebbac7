"""Writing videos. Frames are (H, W, 3) uint8 RGB."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2 import ConfigError
from solo_d2.utils.files import whole_file

# Codecs by extension, in order of preference: H.264 (not in every build), MPEG-4, VP9, Motion JPEG.
CODECS = {
    ".mp4": ("avc1", "mp4v", "VP90"),
    ".mov": ("avc1", "mp4v"),
    ".mkv": ("avc1", "mp4v", "MJPG"),
    ".avi": ("XVID", "MJPG"),
    ".webm": ("VP90", "VP80"),
}


class VideoError(OSError):
    """A video could not be written. The message names the file and the reason."""


class VideoWriter:
    """Write frames at a frame rate; the first frame determines size and codec."""

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        self.num_frames = 0
        self.codec = ""
        self._writer: Any = None
        self._size = (0, 0)

    def write(self, frame: NDArray[np.uint8], times: int = 1) -> None:
        """Append a frame `times` times, resized if needed; VideoError if no codec works."""
        if self._writer is None:
            self._open(frame.shape[0], frame.shape[1])
        pixels = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if pixels.shape[:2] != self._size:
            pixels = cv2.resize(pixels, self._size[::-1], interpolation=cv2.INTER_AREA)
        # Most codecs need even sizes; OpenCV would drop the last row or column.
        bottom, right = (side % 2 for side in self._size)
        if bottom or right:
            pixels = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        for _ in range(times):
            self._writer.write(pixels)
        self.num_frames += times

    def close(self) -> None:
        """Finish the file; VideoError if it is empty or cannot be read back (disk full)."""
        if self._writer is None:
            raise VideoError("no frames to write")
        self._writer.release()
        reader = cv2.VideoCapture(str(self.path))
        count = reader.get(cv2.CAP_PROP_FRAME_COUNT) if reader.isOpened() else 0
        reader.release()
        if abs(count - self.num_frames) > 1:  # some formats round the duration
            raise VideoError(
                f"{self.num_frames} frames were written by {self.codec}, but {count:.0f} can be "
                "read: the disk may be full"
            )

    def _open(self, height: int, width: int) -> None:
        self._size = (height, width)
        even = (width + width % 2, height + height % 2)
        for codec in CODECS[self.path.suffix.lower()]:
            writer = cv2.VideoWriter(
                str(self.path), cv2.VideoWriter.fourcc(*codec), self.rate, even
            )
            if writer.isOpened():
                self._writer, self.codec = writer, codec
                return
            writer.release()
        tried = ", ".join(CODECS[self.path.suffix.lower()])
        raise VideoError(f"this OpenCV has no codec for {self.path.suffix} (tried {tried})")


@contextlib.contextmanager
def writing_video(path: Path, rate: float) -> Iterator[VideoWriter]:
    """Write a video atomically: the file appears only if the block succeeds."""
    with whole_file(path) as temporary:
        writer = VideoWriter(temporary, rate)
        yield writer
        try:
            writer.close()
        except VideoError as error:
            raise VideoError(f"{path}: {error}") from error


def video_path(output: str, stem: str, source: str) -> Path:
    """Return the path of the video: `output`, or `stem`.mp4 in it if it is a folder."""
    target = Path(output).expanduser()
    suffix = target.suffix.lower()
    if target.is_dir() or not suffix:
        target = target / f"{stem}.mp4"
    elif suffix not in CODECS:
        raise ConfigError(f"--output {output}: videos are written as {', '.join(CODECS)}")
    if target.exists() and target.resolve() == Path(source).resolve():
        raise ConfigError(f"--output {output} would replace the video {source}")
    return target
