"""Shared command-line arguments of the tools."""

import argparse

from solo_d2.config import add_import_argument


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with --import that keeps the layout of the description."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_import_argument(parser)
    return parser


def model_parser(description: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """Create a parser with the options of a model; config overrides come last."""
    parser = command_parser(description)
    add = parser.add_argument
    add(
        "--config-file",
        required=True,
        metavar="FILE",
        help="YAML, such as config.yaml of a training",
    )
    add("--weights", metavar="FILE", help="checkpoint; same as --opts MODEL.WEIGHTS FILE")
    if device:
        add("--device", help="cpu or cuda; default: cuda if available")
    add(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides"
    )
    return parser
