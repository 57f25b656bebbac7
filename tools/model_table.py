#!/usr/bin/env python3
"""Update the tables of configs/README.md and README.md: model sizes, published results."""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.utils.commands import run_command  # noqa: E402
from tools.benchmarks import complexity  # noqa: E402
from tools.model_zoo.tables import update_tables  # noqa: E402


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{complexity.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--configs", type=Path, default=Path("configs"), metavar="DIR",
        help="folder with README.md and published.json (default: configs)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Update the tables; return the exit code."""
    arguments = parse_args(argv)
    return run_command(
        "model_table",
        lambda: update_tables(arguments.configs, lambda name: print(name, flush=True)),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
