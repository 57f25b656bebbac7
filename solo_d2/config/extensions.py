"""Code of the user: modules with parts of a model, data sets or config keys (docs/extending.md)."""

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
# What `register_config` was called with.
ADDED_KEYS: list[Callable[[CfgNode], None]] = []


def register_config(add_keys: AddKeys) -> AddKeys:
    """Let every config that is loaded from now on have the keys that a function adds.

    Args:
        add_keys: called with a config, adds keys and their defaults in place. It is returned, so
            that this can be its decorator.
    """
    ADDED_KEYS.append(add_keys)
    return add_keys


def import_extension(name: str) -> None:
    """Import a module of the user, which registers what it has.

    Args:
        name: "package.module", in Python's path or the current folder; or a file "my/module.py".

    Raises:
        ConfigError: there is no such module. What the module itself raises keeps its traceback.
    """
    folder, module = os.getcwd(), name
    if name.endswith(".py"):
        folder, module = str(Path(name).resolve().parent), Path(name).stem
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # one that the module imports
            raise
        raise ConfigError(f"--import {name}: there is no module {error.name} in {folder}") from None


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add --import MODULE, which imports the module as soon as it is read."""
    parser.add_argument(
        "--import",
        dest="imports",
        action=_Import,
        default=[],
        metavar="MODULE",
        help="of yours, or its file, with a head, data set, config keys ...; may be repeated",
    )


class _Import(argparse.Action):
    """Imports the module, and collects its name for processes that are started."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            import_extension(values)
        except ConfigError as error:
            parser.error(str(error))
        namespace.imports = [*namespace.imports, values]
