#!/usr/bin/env python3
r"""Find what would go wrong in training on a data set, before training.

    python tools/check_dataset.py --config-file configs/coco/solov2_R50_1x.yaml \
        --train-json my/train.json --train-images my/images --output check
    python tools/check_dataset.py --config-file configs/coco/solov2_R50_1x.yaml \
        --dataset coco_2017_train --workers 8

Lists images that cannot be read, annotations that training refuses or leaves out, and objects that
are assigned to no cell, and proposes grids and scale ranges for the objects' sizes. --output takes
report.json with all findings, and a page of samples of each data set. The exit code is 0 if
training would work, 1 if it would fail because of the data, 2 if the check itself cannot be done.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.data.arguments import add_dataset_arguments  # noqa: E402
from solo_d2.data.workers import num_workers  # noqa: E402
from solo_d2.utils.commands import run_command  # noqa: E402
from tools.arguments import command_parser  # noqa: E402
from tools.dataset_check.command import check  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="YAML of the training")
    add("--dataset", action="append", default=[], metavar="NAME", help="data set to check, may be "
        "given again; default: those of --train-json and the like, else the config's")  # fmt: skip
    add("--output", type=Path, metavar="DIR", help="folder for report.json and pages of samples")
    add("--json-only", action="store_true", help="open no image")
    add("--objects", type=_count, default=5000, metavar="N", help="images whose objects are "
        "followed to their cells, drawn at random (default: %(default)s)")  # fmt: skip
    add("--workers", type=_count, default=num_workers(), metavar="N", help="processes that open "
        "images (default: %(default)s)")  # fmt: skip
    add_dataset_arguments(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(argv)
    return run_command("check_dataset", lambda: int(check(args)))


if __name__ == "__main__":
    sys.exit(main())
