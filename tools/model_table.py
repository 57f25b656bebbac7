#!/usr/bin/env python3
"""Update the tables of configs/README.md and README.md: model sizes, published results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.arguments import entry_point, plain_parser  # noqa: E402
from tools.benchmarks import complexity  # noqa: E402
from tools.model_zoo.tables import update_tables  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(f"{__doc__}\n\n{complexity.__doc__}")
    parser.add_argument("--configs", type=Path, default=Path("configs"), metavar="DIR",
        help="folder with README.md and published.json (default: configs)")  # fmt: skip
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Update the tables."""
    update_tables(args.configs, lambda name: print(name, flush=True))


main = entry_point("model_table", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
