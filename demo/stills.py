"""The demo on image files."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from demo import window
from demo.arguments import load_predictor
from demo.pipeline import Pipeline
from demo.records import PNG_FOLDER, Records, check_places
from solo_d2 import ConfigError, ImageError, Predictor
from solo_d2.api.images import expand_inputs, output_names, plan_overlays, read_image, save_image
from solo_d2.api.results import Result
from solo_d2.api.video import is_video
from solo_d2.utils.errors import first_line
from solo_d2.utils.user_code import from_user_code


@dataclass
class Still:
    """An image and what the stages add to it."""

    number: int
    file: Path
    overlay: Path | None  # path of its overlay
    png: str  # name of its other PNGs
    image: NDArray[np.uint8] | None = None  # (H, W, 3) RGB
    result: Result | None = None
    picture: NDArray[np.uint8] | None = None  # the overlay
    error: str | None = None  # later stages skip the image


@dataclass
class Stills:
    """Run a model over image files; report and skip those that fail."""

    args: Namespace
    predictor: Predictor
    records: Records
    show: bool = False  # whether to show overlays
    failures: list[str] = field(default_factory=list)  # a line each

    def run(self, stills: Sequence[Still]) -> None:
        """Read, process and draw the files concurrently."""
        stages = {"find": self._guarded(self.find), "draw": self._guarded(self.draw)}
        bar = tqdm(total=len(stills), unit="image", disable=None)  # not into log files
        with bar, Pipeline(self._read(stills), stages) as done:
            for still in done:
                if still.error is None:
                    self._guarded(self.finish)(still)
                if still.error is not None:
                    self.fail(still.error)
                bar.update()

    def fail(self, line: str) -> None:
        """Report and record a failure."""
        self.failures.append(line)
        tqdm.write(f"skipped {line}", file=sys.stderr)

    def _guarded(self, work: Callable[[Still], None]) -> Callable[[Still], Still]:
        """Return the function with its errors recorded in the image, so that other files go on."""

        def call(still: Still) -> Still:
            if still.error is None:
                try:
                    work(still)
                except ImageError as error:
                    still.error = str(error)
                except Exception as error:
                    if from_user_code(error):
                        raise
                    still.error = f"{still.file}: {first_line(error)}"
            return still

        return call

    def _read(self, stills: Sequence[Still]) -> Iterator[Still]:
        for still in stills:
            # A copy, so that its image can be freed.
            yield self._guarded(self.read)(replace(still))

    def read(self, still: Still) -> None:
        """Decode the file."""
        if is_video(still.file):
            raise ImageError(f"{still.file}: is a video: use --video-input")
        still.image = read_image(still.file, max_pixels=self.args.max_pixels)

    def find(self, still: Still) -> None:
        """Run the model."""
        assert still.image is not None
        still.result = self.predictor.find(still.image, str(still.file))

    def draw(self, still: Still) -> None:
        """Draw and save the overlay, if one is wanted."""
        assert still.result is not None
        if still.overlay is not None or self.show:
            still.picture = still.result.draw(**self.args.drawing)
        if still.overlay is not None:
            assert still.picture is not None
            save_image(still.overlay, still.picture)

    def finish(self, still: Still) -> None:
        """Record the results and show the overlay, in the main thread."""
        assert still.result is not None
        self.records.add(still.number, still.png, still.result)
        if self.show and still.picture is not None:
            self.show = window.show_still(str(still.file), still.picture)


def find_files(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images that --input names and the patterns without one."""
    names: list[str] = []
    for pattern in patterns:
        if pattern == "-":
            names += [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        else:
            names.append(pattern)
    files, missing = expand_inputs(names)
    if not files:
        raise ConfigError(f"No image file matches --input {' '.join(missing or patterns)}")
    return files, missing


def plan(args: Namespace, files: Sequence[Path]) -> list[Still]:
    """Choose the output paths of each file, see `plan_overlays`."""
    pngs = output_names([file.with_suffix(".png") for file in files])
    parts = zip(files, plan_overlays(args.output, files), pngs, strict=True)
    return [Still(number, *part) for number, part in enumerate(parts)]


def require_distinct(args: Namespace, stills: Sequence[Still]) -> None:
    """Raise ConfigError if an output would replace an image or the file of another option."""
    owners = {still.file.resolve(): "--input" for still in stills}
    folders = {
        "--save-masks": args.save_masks,
        "--panoptic": args.panoptic and Path(args.panoptic) / PNG_FOLDER,
    }
    places = [("--output", still.overlay) for still in stills if still.overlay is not None]
    for option, folder in folders.items():
        places += [(option, Path(folder) / still.png) for still in stills if folder]
    if args.json:
        places.append(("--json", Path(args.json)))
    for option, place in places:
        owner = owners.setdefault(place.resolve(), option)
        if owner != option:
            raise ConfigError(
                f"{option} would replace {place}, a file of {owner}: choose another place"
            )


def run(args: Namespace) -> int:
    """Run the demo on images; return the number of failures."""
    files, missing = find_files(args.input)
    stills = plan(args, files)
    require_distinct(args, stills)
    check_places(args)
    predictor = load_predictor(args)
    records = Records(args, predictor.classes, predictor.stuff)
    demo = Stills(args, predictor, records, show=args.show and window.can_show())
    for pattern in missing:
        demo.fail(f"{pattern}: no image file matches")
    demo.run(stills)
    records.close()
    total = len(files) + len(missing)
    done = total - len(demo.failures)
    records.report(f"{done} of {total} images")
    if demo.failures:
        print(f"{len(demo.failures)} failed:", *demo.failures, sep="\n  ", file=sys.stderr)
    return len(demo.failures)
