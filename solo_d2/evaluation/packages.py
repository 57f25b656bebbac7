"""Other projects' evaluation packages, made to work with this Detectron2 and NumPy."""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from solo_d2.utils.errors import ConfigError

# Where Detectron2 looks for cityscapesScripts: a path that exists at its makers' only.
_CITYSCAPES_PARENTS = (
    "deeplearning",
    "deeplearning.projects",
    "deeplearning.projects.cityscapesApi",
)


def provide_cityscapes_scripts() -> None:
    """Make the public cityscapesScripts known under the name that Detectron2 imports.

    Needed before a Cityscapes data set is loaded or evaluated. Harmless when called again.

    Raises:
        ConfigError: the package is not installed.
    """
    if _can_import(f"{_CITYSCAPES_PARENTS[-1]}.cityscapesscripts"):
        return
    names = (
        "cityscapesscripts",
        "cityscapesscripts.helpers",
        "cityscapesscripts.helpers.labels",
        "cityscapesscripts.evaluation",
        "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling",
    )
    modules: dict[str, Any] = {name: _import_for_cityscapes(name) for name in names}
    evaluation = modules[names[-1]]
    if not isinstance(evaluation.np, _OldNumpy):
        evaluation.np = _OldNumpy("numpy")
    if not isinstance(evaluation.writeDict2JSON, _WriteButMatches):
        evaluation.writeDict2JSON = _WriteButMatches(evaluation.writeDict2JSON)
    parent: Any = None
    for name in _CITYSCAPES_PARENTS:
        package: Any = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = []
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], package)
        parent = package
    parent.cityscapesscripts = modules["cityscapesscripts"]
    for name, module in modules.items():
        sys.modules[f"{_CITYSCAPES_PARENTS[-1]}.{name}"] = module


class _OldNumpy(types.ModuleType):
    """NumPy with names that it dropped in 1.24 and 2.4, for a module that still uses them."""

    float = float

    @staticmethod
    def in1d(values: Any, among: Any) -> np.ndarray:
        """Which of the values, laid flat, are among the others."""
        return np.isin(np.ravel(values), among)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class _WriteButMatches:
    """cityscapesScripts' writer, less one file that it leaves in the working folder.

    Nothing reads the file, and with today's NumPy its content can't be written as JSON.
    """

    def __init__(self, write: Callable[[Any, str], None]):
        self.write = write

    def __call__(self, content: Any, file_name: str) -> None:
        if file_name != "matches.json":
            self.write(content, file_name)


def _import_for_cityscapes(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "Evaluating a data set in Cityscapes format needs the package cityscapesscripts: "
            f"pip install cityscapesscripts ({error})"
        ) from error


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
