"""Shared parts of the tools: parsers, and the entry point of a command."""

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from solo_d2.utils.commands import Errors, run_command
from solo_d2.utils.errors import ConfigError, DatasetError

# Seconds that a program has to end when this one is interrupted.
PATIENCE = 20.0


class RejectedError(Exception):
    """Ends a command whose result fails a check, with its own exit code."""

    exit_code = 1


def entry_point(
    name: str,
    parse_args: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], object],
    *,
    errors: Errors = (),
    log: bool = False,
) -> Callable[..., int]:
    """Return the `main` of a command: it takes the command line and returns the exit code.

    Args:
        name: name of the command in messages.
        parse_args: reads the command line; None means that of this process.
        run: does the work and may return an exit code.
        errors: see `run_command`.
        log: whether to print the log of Detectron2 and of this project.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        args = parse_args(argv)
        if log:
            from detectron2.utils.logger import setup_logger

            setup_logger()
            logging.getLogger("detectron2.evaluation.fast_eval_api").setLevel(logging.WARNING)

        def work() -> object:
            try:
                return run(args)
            except RejectedError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return error.exit_code

        return run_command(name, work, errors=errors)

    return main


def run_program(command: Sequence[str], **options: Any) -> int:
    """Run a program and return its exit code; Ctrl-C and SIGTERM end it first."""
    with subprocess.Popen(command, **options) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def choose_dataset(given: str | None, cfg: Any, option: str, key: str = "TEST") -> str:
    """Return the data set of an option or the first of DATASETS.`key`; it must have images."""
    from detectron2.data import DatasetCatalog

    from solo_d2.data.catalog import check_datasets

    name = given or next(iter(cfg.DATASETS[key]), None)
    if name is None:
        raise ConfigError(f"DATASETS.{key} is empty: add {option}")
    check_datasets([name])
    if not DatasetCatalog.get(name):
        raise DatasetError(f"Data set '{name}' has no images")
    return str(name)


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser that keeps the layout of the description."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with --import that keeps the layout of the description."""
    from solo_d2.config import add_import_argument  # needs Detectron2

    parser = plain_parser(description)
    add_import_argument(parser)
    return parser


def model_parser(description: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """Create a parser with the options of a model; config overrides come last."""
    parser = command_parser(description)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="YAML, such as config.yaml of a "
        "training")  # fmt: skip
    add("--weights", metavar="FILE", help="checkpoint; same as --opts MODEL.WEIGHTS FILE")
    if device:
        add("--device", help="cpu or cuda; default: cuda if available")
    add_overrides(parser)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --opts, which takes the rest of the command line."""
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides"
    )
