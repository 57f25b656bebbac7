#!/usr/bin/env python3
"""Convert weights of other projects to a checkpoint of this one, and write its config.

    python tools/convert_weights.py SOLOv2_R50_3x.pth solov2.pth
    python demo/demo.py --config-file solov2.yaml --input photo.jpg --output found.jpg

Formats, detected from the parameter names: AdelaiDet, the SOLO authors' code, mmdetection 2 and 3,
Detectron2, torchvision and timm. MODEL.WEIGHTS accepts all of them unconverted; converting shows
the mapping and determines the config. No code in the file is run. If something does not fit,
nothing is written and the exit code is 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.checkpoint.convert import plan_conversion, write_conversion  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tools.arguments import command_parser, entry_point  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("input", metavar="INPUT", help="weights file or URL")
    add("output", metavar="OUTPUT.pth", help="checkpoint to write; the config gets .yaml")
    add("--config-file", metavar="FILE", help="config for settings that the weights do not "
        "determine; default: the most similar of configs/coco")  # fmt: skip
    add("--allow", metavar="PATTERN", action="append", default=[], help="parameters that may be "
        "missing, unexpected or of another shape, such as 'head.*'; repeatable")  # fmt: skip
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if Path(args.input).resolve() == Path(args.output).resolve():
        raise ConfigError(f"{args.output} is the input: choose another output")
    plan = plan_conversion(args.input, args.config_file, allow=args.allow)
    config = write_conversion(plan, args.output)
    for line in plan.report():
        print(line)
    print(f"written: {args.output} and {config}")


main = entry_point("convert_weights", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
