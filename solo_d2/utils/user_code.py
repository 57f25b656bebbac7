"""Detection of exceptions from user code, whose traceback must not be hidden.

Commands print errors on one line if the user can fix a file, key or value. Errors of the user's own
code (a head, mapper, data set function, transform or hook) keep their traceback.
"""

import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

# Packages that call functions named in a config; errors there are about the value.
_CALLERS = ("solo_d2", "detectron2")
# Packages that these use, in addition to the standard library.
_LIBRARIES = (
    *("torch", "torchvision", "triton", "torchao", "numpy", "scipy", "pandas", "matplotlib"),
    *("PIL", "cv2", "imageio", "av", "timm", "huggingface_hub", "safetensors", "packaging"),
    *("fvcore", "iopath", "yacs", "yaml", "omegaconf", "hydra", "antlr4", "portalocker"),
    *("pycocotools", "faster_coco_eval", "panopticapi", "lvis", "cityscapesscripts"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tensorboard", "tqdm"),
    *("cloudpickle", "termcolor", "sympy", "networkx", "requests", "urllib3", "fsspec"),
)
# Files beside the package in a checkout of this project.
_SCRIPTS = ("train_net.py", "tools", "demo")
# These run commands and processes, and call functions of the script that uses them.
_STARTING = ("commands.py", "launch.py")
_FRAME = re.compile(r'^  File "(.+)", line \d+, in ', re.MULTILINE)
_HEAD = "Traceback (most recent call last):"


def from_user_code(error: BaseException) -> bool:
    """Return whether user code raised an error, or is in the call chain of the code that did.

    Scripts that call commands of this project, such as train_net.py, do not count.
    """
    owners = [_owner(file) for file in _frames(error.__traceback__)]
    # Errors of data loader workers contain their traceback as text; the last one counts.
    _, head, text = str(error).rpartition(_HEAD)
    owners += [_owner(file) for file in (_FRAME.findall(text) if head else ())]
    # A user script counts only if no code of `_CALLERS` was called.
    return _called_user(owners) if "caller" in owners else "user" in owners


def calls_user_code(traceback: TracebackType | None) -> bool:
    """Return whether code of `_CALLERS` called user code in a traceback."""
    return _called_user([_owner(file) for file in _frames(traceback)])


def is_of_user(thing: Callable[..., Any]) -> bool:
    """Return whether a class or function is user code, or unknown."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    return _owner(getattr(module, "__file__", None) or "<unknown>") == "user"


def note_part(error: BaseException, text: str) -> None:
    """Add a line to an error's traceback, from Python 3.11 on."""
    if sys.version_info >= (3, 11):
        error.add_note(text)


def _called_user(owners: list[str]) -> bool:
    return "caller" in owners and "user" in owners[owners.index("caller") :]


@cache
def _owner(file: str) -> str:
    """Return the owner of a file: "caller" (see `_CALLERS`), "library" or "user"."""
    if file.startswith("<"):  # generated, such as by dataclasses, unless entered interactively
        typed = file.startswith(("<stdin", "<ipython-input", "<unknown"))
        return "user" if typed else "library"
    path = os.path.realpath(file)
    for folder in _folders(_CALLERS):
        if path.startswith(folder + os.sep):
            return "library" if os.path.basename(path) in _STARTING else "caller"
    package = Path(__file__).resolve().parents[1]
    beside = package.parent
    if (beside / _SCRIPTS[0]).is_file():  # a checkout, not an installed package
        if any(Path(path).is_relative_to(beside / name) for name in _SCRIPTS):
            return "caller"
    for folder in (*_folders(_LIBRARIES), *_standard_library()):
        if path.startswith(folder + os.sep):
            inside = os.path.relpath(path, folder).split(os.sep)
            if not {"site-packages", "dist-packages"} & set(inside):
                return "library"
    return "user"


def _folders(names: tuple[str, ...]) -> Iterator[str]:
    """Yield the folders of those packages that are imported."""
    for name in names:
        module = sys.modules.get(name)
        for folder in getattr(module, "__path__", None) or ():
            yield os.path.realpath(folder)


@cache
def _standard_library() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    return tuple(os.path.realpath(path) for path in paths if path)


def _frames(traceback: TracebackType | None) -> Iterator[str]:
    while traceback is not None:
        frame = traceback.tb_frame
        file = frame.f_code.co_filename
        if file == "<string>" and frame.f_globals.get("__name__") == "__main__":
            file = "<stdin>"  # python -c
        yield file
        traceback = traceback.tb_next
