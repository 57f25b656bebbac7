#!/usr/bin/env python3
"""Compare parts of this project with plain implementations: `benchmark.py COMMAND --help`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.arguments import command_parser, entry_point, plain_parser  # noqa: E402

# What each command measures; its module is tools/benchmarks/COMMAND.py.
COMMANDS = {
    "compare": "this project and a checkout of AdelaiDet: results, time, memory",
    "evaluation": "COCO metrics",
    "gpu": "all measurements on a GPU: kernels, NMS, post-processing, models, training",
    "inference": "variants of a model: eager, half precision, compiled, ONNX, 8-bit",
    "loading": "the training mapper and Detectron2's: images per second, bytes of a sample",
    "nms": "Matrix NMS",
    "postprocess": "from head outputs to final masks",
    "tiles": "tiled inference and one pass over large pictures: AP, time, memory",
    "train": "a training step, target assignment and the mask loss",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the first argument selects the benchmark."""
    argv = sys.argv[1:] if argv is None else argv
    listed = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
    parser = plain_parser(__doc__)
    parser.epilog = f"commands:\n{listed}"
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(argv[:1]).command
    module = importlib.import_module(f"tools.benchmarks.{command}")
    has_imports = getattr(module, "HAS_IMPORTS", True)
    parser = (command_parser if has_imports else plain_parser)(module.__doc__)
    parser.prog = f"benchmark.py {command}"
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser.parse_args(argv[1:])


main = entry_point("benchmark", parse_args, lambda args: args.run(args))

if __name__ == "__main__":
    sys.exit(main())
