"""Train a small SOLOv2 on generated images, evaluate it and draw results (`make demo`).

    python tools/quickstart.py
    python tools/quickstart.py --retrain --min-ap 0 SOLVER.MAX_ITER 50

A finished training is reused as long as config and code are the same. The exit code is 1 if a step
fails or mask AP is below --min-ap.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from solo_d2.api.images import ImageError, output_names, read_image, save_image  # noqa: E402
from solo_d2.config import load_config  # noqa: E402
from solo_d2.utils.commands import (  # noqa: E402
    INTERRUPTED,
    TERMINATED,
    Terminated,
    cause_of_end,
)
from solo_d2.utils.errors import ConfigError  # noqa: E402
from solo_d2.utils.files import save_text  # noqa: E402
from solo_d2.visualization.text import text_font  # noqa: E402
from tools.arguments import RejectedError, entry_point, run_program  # noqa: E402

STAMP = "quickstart.json"
# Rows and pairs (input, prediction) per row of the montage.
ROWS, PAIRS = 4, 3
# Size of overlays relative to the images; tile and gap in pixels.
SCALE, SIDE, GAP = 3, 384, 12
# Written by a training: name -> value of its last evaluation, null if undefined.
EVALUATION = "evaluation.json"


class QuickstartError(RejectedError):
    """A step failed. The message names the step and its log."""


class StoppedError(QuickstartError):
    """Ctrl-C or SIGTERM ended a step."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Result:
    """The result of a training."""

    metrics: dict[str, float]  # name such as "segm/AP" -> percent; NaN if undefined
    train_seconds: float  # including evaluation


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
    add("--retrain", action="store_true", help="train even if the model exists")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args(argv)
    try:
        config = load_config(str(args.config_file), args.opts)
    except ConfigError as error:
        parser.error(str(error))
    args.output = args.output or Path(config.OUTPUT_DIR)
    return args


def fingerprint(config_file: Path, opts: Sequence[str], root: Path = ROOT) -> str:
    """Return a digest of what determines a training: config with its bases, options, code."""
    from tools.ablations.runs import code_digest

    config = CfgNode.load_yaml_with_base(str(config_file))
    parts = json.dumps([config, list(opts), code_digest(root)], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()


def call(step: str, command: Sequence[str | Path], log: Path | None = None) -> None:
    """Run a program in the current folder, with its output passed through.

    Raises:
        QuickstartError: it failed or was terminated.
    """
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words) if len(words) < 16 else shlex.join(words[:10]) + ' ...'}")
    sys.stdout.flush()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    place = f"its messages are above{f' and in {log}' if log else ''}"
    try:
        code = run_program(words, env={**os.environ, "PYTHONPATH": path})
    except (KeyboardInterrupt, Terminated) as stop:
        name, code = "SIGTERM", TERMINATED
        if isinstance(stop, KeyboardInterrupt):
            name, code = "Ctrl-C", INTERRUPTED
        raise StoppedError(f"{step} was stopped by {name}; {place}", code) from None
    if code < 0:
        print(file=sys.stderr)  # its last line may be incomplete
    if code != 0:
        verb = "failed" if cause_of_end(code).startswith("with") else "was ended"
        raise QuickstartError(f"{step} {verb} {cause_of_end(code)}; {place}")


def train(args: argparse.Namespace) -> Result:
    """Train and evaluate, or reuse a finished training.

    Raises:
        QuickstartError: training failed, or left no model or no evaluation.
    """
    digest = fingerprint(args.config_file, args.opts)
    stamp, model = args.output / STAMP, args.output / "model_final.pth"
    done = _read_json(stamp)
    if not args.retrain and done.get("fingerprint") == digest and model.is_file():
        print(f"Reusing {model} of the same config and code; --retrain trains again")
        return Result(done["metrics"], done["train_seconds"])
    evaluation, log = args.output / EVALUATION, args.output / "log.txt"
    for file in (stamp, evaluation):
        file.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "train_net.py", "--config-file", args.config_file]
    start = time.monotonic()
    call("Training", [*command, *args.opts, "OUTPUT_DIR", args.output], log)
    metrics = {k: math.nan if v is None else v for k, v in _read_json(evaluation).items()}
    if "segm/AP" not in metrics or not model.is_file():
        raise QuickstartError(
            f"Training ended without mask AP in {evaluation} or without {model}; see {log}"
        )
    result = Result(metrics, time.monotonic() - start)
    save_text(stamp, json.dumps({"fingerprint": digest, **vars(result)}))
    return result


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def choose_images(json_file: Path, image_root: Path, count: int) -> list[Path]:
    """Choose images, evenly spaced among those of a COCO json with at least two objects."""
    content = json.loads(json_file.read_text(encoding="utf-8"))
    objects = Counter(annotation["image_id"] for annotation in content["annotations"])
    names = sorted(i["file_name"] for i in content["images"] if objects[i["id"]] >= 2)
    count = min(count, len(names))
    return [image_root / names[index * len(names) // count] for index in range(count)]


def make_montage(
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], caption: str
) -> NDArray[np.uint8]:
    """Arrange pairs of input and prediction, (H, W, 3) uint8 RGB, in rows below a caption."""
    import torch
    from torchvision.utils import make_grid

    def into_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = SIDE, SIDE
        fitted = ImageOps.contain(Image.fromarray(image), size, Image.Resampling.BICUBIC)
        return np.array(ImageOps.pad(fitted, size, color=(235, 235, 235)))

    tiles = torch.from_numpy(np.stack([into_square(image) for pair in pairs for image in pair]))
    grid = make_grid(tiles.permute(0, 3, 1, 2), nrow=2 * PAIRS, padding=GAP, pad_value=255)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    fonts = (text_font(size) for size in range(SIDE // 10, 5, -1))
    fitting = (font for font in fonts if font.getlength(caption) <= picture.width - 2 * GAP)
    font = next(fitting, text_font(6))
    bar = 2 * int(font.size)
    picture = ImageOps.expand(picture, (0, bar, 0, 0), "white")
    ImageDraw.Draw(picture).text((GAP, bar // 2), caption, fill="black", font=font, anchor="lm")
    return np.array(picture)


def show(args: argparse.Namespace, metrics: Mapping[str, float]) -> Path:
    """Draw predictions on held-out images and write the montage; return its path.

    Raises:
        QuickstartError: the demo failed, or a picture cannot be read.
    """
    from solo_d2.data.shapes.folder import default_root

    root = default_root()
    json_file = root / "annotations" / "instances_val.json"
    files = choose_images(json_file, root / "val", ROWS * PAIRS)
    folder = args.output / "demo"
    command: list[str | Path] = [sys.executable, ROOT / "demo/demo.py"]
    command += ["--config-file", args.output / "config.yaml"]
    command += ["--weights", args.output / "model_final.pth"]
    command += ["--output", folder, "--json", folder / "results.json", "--scale", str(SCALE)]
    command += ["--confidence-threshold", str(args.confidence_threshold)]
    call("The demo", [*command, "--input", *files])
    overlays = [folder / name for name in output_names(files)]
    caption = f"SOLOv2 on held-out images, mask AP {metrics['segm/AP']:.1f}"
    if "panoptic_seg/PQ" in metrics:
        caption += f", PQ {metrics['panoptic_seg/PQ']:.1f}"
    try:
        pairs = [(read_image(f), read_image(o)) for f, o in zip(files, overlays, strict=True)]
    except ImageError as error:
        raise QuickstartError(str(error)) from error
    montage = args.output / "montage.png"
    save_image(montage, make_montage(pairs, f"{caption}: input | prediction"))
    return montage.resolve()


def format_table(result: Result, total_seconds: float) -> str:
    """Format the metrics of a run as a table."""

    def row(name: str, *keys: str) -> list[str]:
        values = [result.metrics.get(key, math.nan) for key in keys]
        return [name, *("-" if math.isnan(value) else f"{value:.1f}" for value in values)]

    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP small", "APm": "AP medium"}
    rows = [["", "mask", "box"]]
    for key, name in {**names, "APl": "AP large"}.items():
        rows.append(row(name, f"segm/{key}", f"bbox/{key}"))
    if "panoptic_seg/PQ" in result.metrics:
        rows.append(["", "all", "things", "stuff"])
        for key in ("PQ", "SQ", "RQ"):
            rows.append(row(key, *(f"panoptic_seg/{key}{group}" for group in ("", "_th", "_st"))))
    for name, seconds in (("training", result.train_seconds), ("this run", total_seconds)):
        minutes, rest = divmod(round(seconds), 60)
        rows.append([name, f"{minutes}:{rest:02} min"])
    return "\n".join(f"{head:20}" + "".join(f"{x:>8}" for x in cells) for head, *cells in rows)


def run(args: argparse.Namespace) -> int:
    """Train, draw and print the results; return 1 if mask AP is below --min-ap."""
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


main = entry_point("quickstart", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
