"""The demo on a video file or a camera: read, detect, draw, show and save concurrently."""

import contextlib
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from demo.arguments import load_predictor
from demo.pipeline import Pipeline
from demo.records import Records, check_places
from demo.video_files import VideoWriter, video_path, writing_video
from demo.window import View, Window, can_show, status_lines, times_text, with_status
from solo_d2 import ConfigError, Predictor
from solo_d2.api.images import require_writable, save_image
from solo_d2.api.results import Result
from solo_d2.api.video import Video
from solo_d2.utils.commands import Terminated
from solo_d2.visualization.tracker import MaskTracker

# Consecutive frames that a camera may miss, and seconds between attempts.
_RETRIES, _RETRY_PAUSE = 20, 0.05
# Weight of the newest interval between frames in the moving average.
_NEWEST = 0.1
# Tolerance of the number of frames in the header of a file.
_COUNT_ERROR = 2


@dataclass
class Frame:
    """A frame and what the stages add to it."""

    number: int  # in its source, from 0, with dropped frames
    seconds: float  # when it was read, since the first one
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    found: Result | None = None  # detections with track ids
    shown: Result | None = None  # the detections that are drawn
    picture: NDArray[np.uint8] | None = None  # the overlay


def read_frames(video: Video, *, live: bool, paced: bool, limit: int | None) -> Iterator[Frame]:
    """Number the frames of a source, `limit` at most.

    A `live` source is a camera, which may miss a frame. A `paced` source is a file that plays like
    a camera: frames are yielded at its frame rate.
    """
    started, number, missed = time.perf_counter(), 0, 0
    while limit is None or number < limit:
        image = video.read()
        if image is None:
            missed += 1
            if not live or paced or missed > _RETRIES:
                return
            time.sleep(_RETRY_PAUSE)
            continue
        missed = 0
        if paced:
            time.sleep(max(0.0, started + number / video.rate - time.perf_counter()))
        yield Frame(number, time.perf_counter() - started, image)
        number += 1


@dataclass
class Live:
    """Run a model over the frames of a source; display and write the results."""

    args: Namespace
    predictor: Predictor
    records: Records
    video: Video
    view: View
    window: Window | None
    writer: VideoWriter | None = None

    def __post_init__(self) -> None:
        self.tracker = MaskTracker()
        self.num_frames = 0
        self._interval, self._last = 0.0, time.perf_counter()

    @property
    def is_live(self) -> bool:
        """Whether the source is a camera, which does not wait for the model."""
        return self.args.webcam is not None

    def run(self) -> None:
        """Process frames until the source ends or the user quits."""
        paced = self.is_live and os.path.isfile(self.video.name)
        limit = self.args.max_frames
        source = read_frames(self.video, live=self.is_live, paced=paced, limit=limit)
        stages = {"find": self.find, "draw": self.draw, "save": self.save}
        known = None if self.is_live else self.video.num_frames
        total = limit if known is None else min(known, limit or known)
        ahead = 1 if self.is_live else 3
        with (
            tqdm(total=total, unit="frame", disable=None) as bar,
            Pipeline(source, stages, ahead=ahead, live=self.is_live) as done,
        ):
            for frame in done:
                self.num_frames += 1
                now = time.perf_counter()
                passed, self._last = now - self._last, now
                weight = _NEWEST if self.num_frames > 1 else 1
                self._interval += weight * (passed - self._interval)
                bar.update()
                bar.set_postfix_str(times_text(done.seconds), refresh=False)
                if self.window is not None and not self.present(frame, done):
                    return

    def find(self, frame: Frame) -> Frame:
        """Run the model and assign track ids."""
        result = self.predictor.find(frame.image, f"{self.video.name}#{frame.number}")
        instances = result.instances
        frame.found = result.tracked(
            self.tracker.update(instances.pred_masks, instances.pred_classes)
        )
        return frame

    def draw(self, frame: Frame) -> Frame:
        """Draw the instances above the threshold."""
        assert frame.found is not None
        only = self.view.class_index
        frame.shown = frame.found.filtered(self.view.threshold, None if only is None else [only])
        if self.window is not None or self.writer is not None:
            frame.picture = frame.shown.draw(**self.args.drawing)
        return frame

    def save(self, frame: Frame) -> Frame:
        """Write the frame and its results."""
        assert frame.shown is not None
        if self.writer is not None and frame.picture is not None:
            self.writer.write(frame.picture, self._times(frame))
        self.records.add(frame.number, f"{frame.number:06}.png", frame.shown)
        return frame

    def _times(self, frame: Frame) -> int:
        """Return how often to write a frame, so that the video of a camera keeps its speed."""
        if not self.is_live or self.writer is None:
            return 1
        due = math.floor(frame.seconds * self.writer.rate) + 1
        return max(1, due - self.writer.num_frames)

    def present(self, frame: Frame, done: Pipeline) -> bool:
        """Show a frame and handle keys; return False if the user quits."""
        assert self.window is not None
        # Show a file no faster than its frame rate.
        wait = 1 if self.is_live or self.writer else max(1, int(900 / self.video.rate))
        while True:
            assert frame.picture is not None
            assert frame.found is not None
            names = self.predictor.classes.names
            lines = status_lines(self.view, done.seconds, 1 / max(1e-6, self._interval), names)
            key = self.window.show(
                with_status(frame.picture, lines), 50 if self.view.paused else wait
            )
            if self.view.press(key, frame.found.instances.pred_classes.tolist()):
                self.predictor.score_thresh = self.view.threshold
                self.draw(frame)
            while self.view.saves:
                self.view.saves -= 1
                folder = Path(self.args.output or "frame").parent
                path = folder / f"{source_stem(self.args)}_{frame.number:06}.png"
                save_image(path, frame.picture)
                tqdm.write(f"saved {path}")
            if self.view.closed or not self.view.paused:
                return not self.view.closed


def source_stem(args: Namespace) -> str:
    """Return a file stem for what is made of the source."""
    if args.video_input:
        return Path(args.video_input).stem
    if args.webcam.isdecimal():
        return f"camera_{args.webcam}"
    return Path(args.webcam).stem or "camera"


def run(args: Namespace) -> int:
    """Run the demo on a video; return 1 if it has fewer frames than its header says."""
    output = args.output and video_path(args.output, source_stem(args), args.video_input or "")
    if output:
        require_writable(output)
    check_places(args)
    if args.json and Path(args.json).resolve() == Path(args.video_input or "").resolve():
        raise ConfigError(f"--json {args.json} would replace the video")
    window = Window() if args.show and can_show() else None
    if window is None and not (output or args.json or args.save_masks or args.panoptic):
        raise ConfigError("No window is available and no output is set: add --output or --json")
    source = args.video_input or (int(args.webcam) if args.webcam.isdecimal() else args.webcam)
    with Video(source) as video:
        predictor = load_predictor(args)
        records = Records(args, predictor.classes, predictor.stuff)
        view = View(args.confidence_threshold)
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(writing_video(output, video.rate)) if output else None
            demo = Live(args, predictor, records, video, view, window, writer)
            if window is not None:
                stack.callback(window.close)
            try:
                demo.run()
            except (KeyboardInterrupt, Terminated):
                # Keep the recording of a camera, but not of a file.
                if not demo.is_live:
                    raise
                print("demo: stopped", file=sys.stderr)
        records.close()
        records.report(f"{demo.num_frames} frames")
        return _report_missing(demo)


def _report_missing(demo: Live) -> int:
    promised = demo.video.num_frames
    if demo.is_live or demo.view.closed or promised is None:
        return 0
    expected = min(promised, demo.args.max_frames or promised)
    if demo.num_frames >= expected - _COUNT_ERROR:
        return 0
    print(
        f"demo: {demo.video.name}: {demo.num_frames} of {promised} frames could be read; "
        "the file may be damaged",
        file=sys.stderr,
    )
    return 1
