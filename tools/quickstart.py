"""Train a small SOLOv2 on generated images, evaluate it and show it: what `make demo` runs.

    python tools/quickstart.py
    python tools/quickstart.py --retrain --min-ap 0 SOLVER.MAX_ITER 50

A finished training is used again while config and code are the same. The exit code is 1 if a step
fails or mask AP is below the floor.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from solo_d2.api.images import ImageError, output_names, read_image, save_image  # noqa: E402
from solo_d2.utils.commands import (  # noqa: E402
    INTERRUPTED,
    TERMINATED,
    Terminated,
    cause_of_end,
    run_command,
)
from solo_d2.utils.files import save_text  # noqa: E402
from solo_d2.visualization.text import text_font  # noqa: E402

STAMP = "quickstart.json"
# Rows and pairs (input, prediction) per row of the montage.
ROWS, PAIRS = 4, 3
# Overlays are drawn at this many times the size of the images; side of a tile in pixels.
SCALE, SIDE = 3, 384
# Seconds that a step has to end when it was told to.
PATIENCE = 20.0
# Metrics that are read, by the start of their names.
TASKS = ("segm/", "bbox/", "panoptic_seg/")
# What a training depends on; the demo, tests and other tools are not part of it.
CODE = ("solo_d2/**/*.py", "train_net.py")


class QuickstartError(RuntimeError):
    """A step failed. The message says which, and where to look."""


class StoppedError(QuickstartError):
    """Ctrl-C or SIGTERM has ended a step, and the quickstart with it."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Attributes:
        metrics: name -> value in percent, for example "segm/AP"; NaN where it is not defined.
        train_seconds: time of training and evaluation together.
    """

    metrics: dict[str, float]
    train_seconds: float


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", type=Path, default=ROOT / "configs/quickstart/solov2_shapes.yaml")
    add("--output", type=Path, help="folder of all results; default: the config's OUTPUT_DIR")
    add("--min-ap", type=float, default=55.0, help="least mask AP, in percent")
    add("--confidence-threshold", type=float, default=0.4, help="of the instances that are drawn")
    add("--retrain", action="store_true", help="train even if the model is there")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args(argv)
    if args.output is None:
        config = CfgNode.load_yaml_with_base(str(args.config_file))
        args.output = Path(config.get("OUTPUT_DIR", "output/quickstart"))
    return args


def fingerprint(config_file: Path, opts: Sequence[str], root: Path = ROOT) -> str:
    """A digest of all that decides what a training gives.

    Args:
        config_file: the config; what it is based on counts too.
        opts: overrides.
        root: of the code.
    """
    config = CfgNode.load_yaml_with_base(str(config_file))
    digest = hashlib.sha256(json.dumps([config, list(opts)], sort_keys=True, default=str).encode())
    for pattern in CODE:
        for file in sorted(root.glob(pattern)):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def read_metrics(file: Path, start: int = 0) -> dict[str, float]:
    """The last evaluation in a training's metrics.json.

    Args:
        file: a JSON object on each line, as Detectron2 writes it.
        start: bytes to skip, those of earlier runs.

    Returns:
        Values of "segm/...", "bbox/..." and "panoptic_seg/..."; empty where there was no
        evaluation.
    """
    if not file.is_file():
        return {}
    found: dict[str, float] = {}
    with file.open("rb") as lines:
        lines.seek(start)
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # cut off when a run was killed
                continue
            if "segm/AP" in record:
                found = {k: float(v) for k, v in record.items() if k.startswith(TASKS)}
    return found


def call(step: str, command: Sequence[str | Path], log: Path | None = None) -> None:
    """Run a program in the current folder, with its output passed through.

    Args:
        step: what it does, for messages.
        command: the program and its arguments.
        log: where its messages are written too.

    Raises:
        QuickstartError: it failed or was ended.
    """
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words) if len(words) < 16 else shlex.join(words[:10]) + ' ...'}")
    sys.stdout.flush()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    place = f"its messages are above{f' and in {log}' if log else ''}"
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            code = process.wait()
        except (KeyboardInterrupt, Terminated) as stop:
            _end(process)
            name, code = "SIGTERM", TERMINATED
            if isinstance(stop, KeyboardInterrupt):
                name, code = "Ctrl-C", INTERRUPTED
            raise StoppedError(f"{step} was stopped by {name}; {place}", code) from None
    if code < 0:
        print(file=sys.stderr)  # it may have been in the midst of a line
    if code != 0:
        verb = "failed" if cause_of_end(code).startswith("with") else "was ended"
        raise QuickstartError(f"{step} {verb} {cause_of_end(code)}; {place}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program that may have got the same signal, and leave it time to clean up."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def train(args: argparse.Namespace) -> Result:
    """Train and evaluate, or take the finished training that is there.

    Raises:
        QuickstartError: training failed, or left no model or no evaluation.
    """
    digest = fingerprint(args.config_file, args.opts)
    stamp = args.output / STAMP
    model = args.output / "model_final.pth"
    done = _read_stamp(stamp)
    if not args.retrain and done.get("fingerprint") == digest and model.is_file():
        print(f"{model} is there, made from this config and code; --retrain trains again")
        return Result(done["metrics"], done["train_seconds"])
    stamp.unlink(missing_ok=True)
    metrics_file = args.output / "metrics.json"
    old_bytes = metrics_file.stat().st_size if metrics_file.is_file() else 0
    command = [sys.executable, ROOT / "train_net.py", "--config-file", args.config_file]
    start = time.monotonic()
    log = args.output / "log.txt"
    call("Training", [*command, *args.opts, "OUTPUT_DIR", args.output], log)
    result = Result(read_metrics(metrics_file, old_bytes), time.monotonic() - start)
    if not result.metrics or not model.is_file():
        raise QuickstartError(
            f"Training ended without an evaluation in {metrics_file} or without {model}; see {log}"
        )
    save_text(stamp, json.dumps({"fingerprint": digest, **vars(result)}))
    return result


def _read_stamp(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def choose_images(json_file: Path, image_root: Path, count: int) -> list[Path]:
    """Take images spread evenly over those of a data set that have two objects or more.

    Args:
        json_file: of the data set, in COCO format.
        image_root: folder of its images.
        count: how many at most.
    """
    content = json.loads(json_file.read_text(encoding="utf-8"))
    objects: dict[int, int] = {}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]] = objects.get(annotation["image_id"], 0) + 1
    names = sorted(i["file_name"] for i in content["images"] if objects.get(i["id"], 0) >= 2)
    count = min(count, len(names))
    return [image_root / names[index * len(names) // count] for index in range(count)]


def draw_predictions(args: argparse.Namespace, files: Sequence[Path]) -> list[Path]:
    """Run the demo on images; returns the overlays."""
    folder = args.output / "demo"
    command: list[str | Path] = [sys.executable, ROOT / "demo/demo.py"]
    command += ["--config-file", args.output / "config.yaml"]
    command += ["--weights", args.output / "model_final.pth"]
    command += ["--output", folder, "--json", folder / "results.json", "--scale", str(SCALE)]
    command += ["--confidence-threshold", str(args.confidence_threshold)]
    call("The demo", [*command, "--input", *files])
    return [folder / name for name in output_names(files)]


def make_montage(
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    *,
    caption: str,
    pairs_per_row: int = PAIRS,
    side: int = SIDE,
    gap: int = 12,
) -> NDArray[np.uint8]:
    """Lay inputs and predictions out in rows, under a caption.

    Args:
        pairs: of images (H, W, 3) uint8 RGB: an input and its prediction.
        caption: a line of text.
        pairs_per_row: pairs beside each other.
        side: of the square that each image is resized into, in pixels.
        gap: pixels between pairs and around.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    if not pairs:
        raise ValueError("a montage needs at least one pair of images")
    columns, rows = min(pairs_per_row, len(pairs)), math.ceil(len(pairs) / pairs_per_row)
    inner = gap // 3
    pair_width = 2 * side + inner
    width = columns * (pair_width + gap) + gap
    font = _fitting_font(caption, width - 2 * gap, largest=max(12, side // 10))
    bar = 2 * int(font.size)
    canvas = Image.new("RGB", (width, bar + rows * (side + gap)), "white")
    ImageDraw.Draw(canvas).text((gap, bar // 2), caption, fill="black", font=font, anchor="lm")
    for index, pair in enumerate(pairs):
        row, column = divmod(index, pairs_per_row)
        x, y = gap + column * (pair_width + gap), bar + row * (side + gap)
        for offset, image in zip((0, side + inner), pair, strict=True):
            canvas.paste(_into_square(image, side), (x + offset, y))
    return np.array(canvas)


def _into_square(image: NDArray[np.uint8], side: int) -> Image.Image:
    fitted = ImageOps.contain(Image.fromarray(image), (side, side), Image.Resampling.BICUBIC)
    return ImageOps.pad(fitted, (side, side), color=(235, 235, 235))


def _fitting_font(text: str, width: int, largest: int) -> ImageFont.FreeTypeFont:
    """The largest size of the font that Detectron2's overlays use at which a text fits."""
    fonts = (text_font(size) for size in range(largest, 6, -1))
    return next((font for font in fonts if font.getlength(text) <= width), text_font(6))


def show(args: argparse.Namespace, metrics: Mapping[str, float]) -> Path:
    """Draw predictions on held-out images and write the montage; returns its path.

    Raises:
        QuickstartError: the demo failed, or a picture cannot be read.
    """
    from solo_d2.data.shapes.folder import default_root

    root = default_root()
    json_file = root / "annotations" / "instances_val.json"
    files = choose_images(json_file, root / "val", ROWS * PAIRS)
    overlays = draw_predictions(args, files)
    figures = f"mask AP {metrics['segm/AP']:.1f}"
    if "panoptic_seg/PQ" in metrics:
        figures += f", PQ {metrics['panoptic_seg/PQ']:.1f}"
    caption = f"SOLOv2 on held-out images, {figures}: input | prediction"
    montage = args.output / "montage.png"
    try:
        pairs = [(read_image(f), read_image(o)) for f, o in zip(files, overlays, strict=True)]
    except ImageError as error:
        raise QuickstartError(str(error)) from error
    save_image(montage, make_montage(pairs, caption=caption))
    return montage.resolve()


def format_table(result: Result, total_seconds: float) -> str:
    """The figures of a run, a line each."""
    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP small", "APm": "AP medium"}
    names["APl"] = "AP large"
    lines = [f"{'':20}{'mask':>8}{'box':>8}"]
    for key, name in names.items():
        values = [result.metrics.get(f"{task}/{key}", math.nan) for task in ("segm", "bbox")]
        lines.append(f"{name:20}" + "".join(f"{_figure(value):>8}" for value in values))
    if "panoptic_seg/PQ" in result.metrics:
        lines.append(f"{'':20}{'all':>8}{'things':>8}{'stuff':>8}")
        for key in ("PQ", "SQ", "RQ"):
            values = [
                result.metrics.get(f"panoptic_seg/{key}{group}", math.nan)
                for group in ("", "_th", "_st")
            ]
            lines.append(f"{key:20}" + "".join(f"{_figure(value):>8}" for value in values))
    lines.append(f"{'training':20}{_minutes(result.train_seconds):>8}")
    lines.append(f"{'this run':20}{_minutes(total_seconds):>8}")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02} min"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(argv)

    def work() -> int:
        try:
            return run(args)
        except StoppedError as error:
            print(f"quickstart: {error}", file=sys.stderr)
            return error.exit_code

    return run_command("quickstart", work, errors=(QuickstartError,), failed=1)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    start = time.monotonic()
    result = train(args)
    montage = show(args, result.metrics)
    print(f"\n{format_table(result, time.monotonic() - start)}\n\nmontage: {montage}")
    ap = result.metrics["segm/AP"]
    if math.isnan(ap) or ap < args.min_ap:
        found = "undefined, as no object was found" if math.isnan(ap) else f"{ap:.1f}"
        print(f"quickstart: mask AP is {found}; the floor is {args.min_ap:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
