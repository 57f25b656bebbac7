#!/usr/bin/env python3
r"""Check a data set before training.

    python tools/check_dataset.py --config-file configs/coco/solov2_R50_1x.yaml \
        --train-json my/train.json --train-images my/images --output check
    python tools/check_dataset.py --config-file configs/coco/solov2_R50_1x.yaml \
        --dataset coco_2017_train --workers 8

Lists unreadable images, annotations that training refuses or skips, and objects without a cell, and
proposes grids and scale ranges for the object sizes. --output receives report.json with all
findings, and a page of samples per data set. Exit codes: 0 training would work, 1 it would fail
because of the data, 2 the check itself failed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.data.arguments import add_dataset_arguments  # noqa: E402
from solo_d2.data.workers import num_workers  # noqa: E402
from tools.arguments import command_parser, entry_point  # noqa: E402
from tools.dataset_check.command import check  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="training config")
    add("--dataset", action="append", default=[], metavar="NAME", help="data set to check, "
        "repeatable; default: those of --train-json etc., otherwise the config's")  # fmt: skip
    add("--output", type=Path, metavar="DIR", help="folder for report.json and pages of samples")
    add("--json-only", action="store_true", help="do not open images")
    add("--objects", type=_count, default=5000, metavar="N", help="maximum number of "
        "images whose objects are assigned to cells (default: %(default)s)")  # fmt: skip
    add("--workers", type=_count, default=num_workers(), metavar="N", help="processes that open "
        "images (default: %(default)s)")  # fmt: skip
    add_dataset_arguments(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


main = entry_point("check_dataset", parse_args, lambda args: int(check(args)))

if __name__ == "__main__":
    sys.exit(main())
