#!/usr/bin/env python3
"""Plot speed and mask AP of the published models (SOLOv2 paper, figure 1a; SOLO, table 6).

    python tools/plot_published.py --output speed_accuracy.png

Times per image on a V100 are from the authors; see configs/published.json.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.figure import Figure

from solo_d2.config import configs_folder
from tools.arguments import entry_point, plain_parser
from tools.figures.plots import save_figure
from tools.model_zoo.published import VAL, Published, read_published
from tools.model_zoo.tables import model_title

# Of a config: family, name in the family, schedule.
_NAME = re.compile(r"(.*?)_((?:\d{3}_)?[RX]\d+.*)_(\dx)")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".png or .jpg")
    parser.add_argument("--configs", type=Path, default=configs_folder(), metavar="DIR")
    return parser.parse_args(argv)


def speeds(published: Published) -> dict[str, dict[str, tuple[float, float]]]:
    """Return ms and mask AP on val2017 of each model, by family and name, fastest first.

    Of several schedules the first of 3x, 6x and 1x is used: they are equally fast.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    named = {name: _NAME.fullmatch(name.rpartition("/")[2]) for name in published.models}
    for config, match in sorted(named.items(), key=lambda item: "361".find(item[0][-2])):
        if match is None:
            continue
        family, label, _ = match.groups()
        for result in published.models[config]:
            metrics = result.metrics
            if result.split != VAL or not {"ms", "fps"} & metrics.keys() or "GB" in metrics:
                continue  # mmdetection, which says GB, used another GPU
            title = model_title(family) + " of AdelaiDet" * (result.recipe == "AdelaiDet")
            point = (metrics.get("ms") or 1000 / metrics["fps"], result.main[1])
            found.setdefault(title, {}).setdefault(model_title(label), point)
    return {name: dict(sorted(x.items(), key=lambda item: item[1])) for name, x in found.items()}


def plot(published: Published) -> Figure:
    """Draw a line for each family of models."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in speeds(published).items():
        (line,) = axes.plot(*zip(*points.values(), strict=True), marker="o", label=name)
        for label, point in points.items():
            style: dict[str, Any] = {
                "fontsize": 6,
                "textcoords": "offset points",
                "color": line.get_color(),
            }
            axes.annotate(label, point, (4, -9), **style)
    axes.set(xlabel="ms per image, V100", ylabel="mask AP, COCO val2017", xscale="log")
    ticks = (20, 30, 50, 100, 150)
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    save_figure(plot(read_published(args.configs)), args.output)


main = entry_point("plot_published", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
