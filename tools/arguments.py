"""What the command lines of several tools have in common."""

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
    add("--config-file", required=True, metavar="FILE", help="YAML; also a training's config.yaml")
    add("--weights", metavar="FILE", help="checkpoint; short for --opts MODEL.WEIGHTS FILE")
    if device:
        add("--device", help="cpu or cuda; default: cuda where there is one")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")
    return parser
