"""User modules with parts of a model, data sets or config keys (docs/extending.md)."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from detectron2.config import CfgNode

from solo_d2.utils.errors import ConfigError

AddKeys = TypeVar("AddKeys", bound=Callable[[CfgNode], None])
# Arguments of `register_config`.
ADDED_KEYS: list[Callable[[CfgNode], None]] = []


def register_config(add_keys: AddKeys) -> AddKeys:
    """Add keys to every config that is loaded afterwards; can be used as a decorator.

    Args:
        add_keys: called with a config, adds keys with their defaults in place.
    """
    ADDED_KEYS.append(add_keys)
    return add_keys


def import_extension(name: str) -> None:
    """Import a user module, which registers its parts.

    Args:
        name: "package.module" on Python's path or in the current folder, or a file "my/module.py".

    Raises:
        ConfigError: there is no such module. Errors of the module itself keep their traceback.
    """
    folder, module = os.getcwd(), name
    if name.endswith(".py"):
        folder, module = str(Path(name).resolve().parent), Path(name).stem
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # imported by the module
            raise
        raise ConfigError(f"--import {name}: there is no module {error.name} in {folder}") from None


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add --import MODULE, which imports the module when the argument is parsed."""
    parser.add_argument(
        "--import",
        dest="imports",
        action=_Import,
        default=[],
        metavar="MODULE",
        help="module or file to import, with a head, data set, config keys, ...; may be repeated",
    )


class _Import(argparse.Action):
    """Import the module, and keep its name for spawned processes."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            import_extension(values)
        except ConfigError as error:
            parser.error(str(error))
        namespace.imports = [*namespace.imports, values]
