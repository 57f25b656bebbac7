#!/usr/bin/env python3
"""Compare parts of this project with plain implementations: `benchmark.py COMMAND --help`."""

import argparse
import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.utils.commands import run_command  # noqa: E402

# What each command measures; its module is tools/benchmarks/COMMAND.py.
COMMANDS = {
    "compare": "this project and a checkout of AdelaiDet: results, time, memory",
    "evaluation": "COCO metrics",
    "gpu": "all measurements on a GPU: kernels, NMS, post-processing, models, training",
    "inference": "variants of a model: eager, half precision, compiled, ONNX, 8-bit",
    "loading": "the training mapper and Detectron2's: images per second, bytes of a sample",
    "nms": "mask NMS",
    "postprocess": "from head outputs to final masks",
    "train": "a training step, target assignment and the mask loss",
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; the first argument selects the benchmark."""
    listed = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"commands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(argv[:1]).command
    module = importlib.import_module(f"tools.benchmarks.{command}")
    parser = argparse.ArgumentParser(
        prog=f"benchmark.py {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if getattr(module, "HAS_IMPORTS", True):
        from solo_d2.config import add_import_argument  # needs Detectron2

        add_import_argument(parser)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser.parse_args(argv[1:])


def main(argv: list[str]) -> int:
    """Run a benchmark; return the exit code."""
    args = parse_args(argv)
    return run_command("benchmark", lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
