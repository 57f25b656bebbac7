#!/usr/bin/env python3
r"""Plot learning curves of trainings from the metrics.json in their output folders.

    python tools/plot_metrics.py output/solov2 output/mask_rcnn --keys total_loss segm/AP \
        --output curves.png

Draws a panel per key and a line per training.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.figure import Figure

from solo_d2.utils.errors import ConfigError
from tools.arguments import entry_point, plain_parser
from tools.figures.plots import save_figure


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of trainings")
    parser.add_argument("--keys", nargs="+", default=["total_loss", "segm/AP"], metavar="KEY")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="default: folder names")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".png or .jpg")
    args = parser.parse_args(argv)
    if args.names and len(args.names) != len(args.folders):
        parser.error(f"{len(args.names)} --names were given for {len(args.folders)} folders")
    return args


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the lines of a training's metrics.json."""
    file = folder / "metrics.json"
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            int(values["iteration"])
            metrics.append(values)
        except (ValueError, TypeError, KeyError):
            # The last line may be incomplete if the training runs or was killed.
            if number < len(lines):
                raise ConfigError(
                    f"{file}, line {number} is no metrics of an iteration in JSON"
                ) from None
    return metrics


def curve(metrics: Sequence[dict[str, float]], key: str) -> tuple[list[int], list[float]]:
    """Return iterations and values of a key, without those that a resume or a restart replaced."""
    values: dict[int, float] = {}
    for line in metrics:
        if key in line:
            iteration = int(line["iteration"])
            while values and next(reversed(values)) >= iteration:
                values.popitem()
            values[iteration] = line[key]
    return list(values), list(values.values())


def plot(runs: dict[str, list[dict[str, float]]], keys: Sequence[str]) -> Figure:
    """Draw a panel per key and a line per training."""
    figure = Figure(figsize=(5 * len(keys), 3.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        curves = {name: curve(metrics, key) for name, metrics in runs.items()}
        if not any(values for _, values in curves.values()):
            known = sorted({name for metrics in runs.values() for line in metrics for name in line})
            raise ConfigError(f"no training has {key!r}; choose from {', '.join(known)}")
        for name, (iterations, values) in curves.items():
            axes.plot(iterations, values, label=name, marker="." if len(values) < 20 else None)
        axes.set(title=key, xlabel="iteration")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    names = args.names or [folder.resolve().name for folder in args.folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"Trainings have the same name ({', '.join(names)}): set --names")
    runs = {name: read_metrics(folder) for name, folder in zip(names, args.folders, strict=True)}
    save_figure(plot(runs, args.keys), args.output)


main = entry_point("plot_metrics", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
