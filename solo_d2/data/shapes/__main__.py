"""Write the generated data set: `python -m solo_d2.data.shapes --output DIR`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from solo_d2.data.shapes.folder import ShapesParams, default_root, ensure_shapes
from solo_d2.utils.commands import run_command


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    defaults = ShapesParams()
    parser = argparse.ArgumentParser(
        prog="python -m solo_d2.data.shapes",
        description="Write the generated data set 'shapes' in COCO format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=default_root(), help="the data set's folder")
    parser.add_argument("--num-train", type=int, default=defaults.num_train, help="training images")
    parser.add_argument("--num-val", type=int, default=defaults.num_val, help="validation images")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of all random numbers")
    parser.add_argument(
        "--force", action="store_true", help="replace a data set of other parameters or version"
    )
    return parser.parse_args(argv)


def main() -> int:
    """Run the command; return the exit code."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_command("error", lambda: run(args), errors=(ValueError,), failed=1)


def run(args: argparse.Namespace) -> None:
    """Write the data set of these arguments."""
    params = ShapesParams(args.num_train, args.num_val, args.seed)
    root = ensure_shapes(args.output, params, force=args.force)
    print(f"The data set 'shapes' is in {root.absolute()}")


if __name__ == "__main__":
    sys.exit(main())
