"""Whether an exception comes from code of the user, whose traceback must not be hidden.

Our commands print an error on one line where the user can mend it in a file, a key or a value. What
the user's own code raises (a head, mapper, data set function, transform or hook) keeps its
traceback, which its author needs.
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

# Packages whose code calls what a config names: an error there is about the value.
_CALLERS = ("solo_d2", "detectron2")
# Packages that these use; the standard library counts as one of them.
_LIBRARIES = (
    *("torch", "torchvision", "triton", "torchao", "numpy", "scipy", "pandas", "matplotlib"),
    *("PIL", "cv2", "imageio", "av", "timm", "huggingface_hub", "safetensors", "packaging"),
    *("fvcore", "iopath", "yacs", "yaml", "omegaconf", "hydra", "antlr4", "portalocker"),
    *("pycocotools", "faster_coco_eval", "panopticapi", "lvis", "cityscapesscripts"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tensorboard", "tqdm"),
    *("cloudpickle", "termcolor", "sympy", "networkx", "requests", "urllib3", "fsspec"),
)
# Files of a checkout of this project that are beside the package.
_SCRIPTS = ("train_net.py", "tools", "demo")
# These start commands and processes: through them scripts call functions of their own.
_STARTING = ("commands.py", "launch.py")
_FRAME = re.compile(r'^  File "(.+)", line \d+, in ', re.MULTILINE)
_HEAD = "Traceback (most recent call last):"


def from_user_code(error: BaseException) -> bool:
    """Return whether code of the user raised an error, or called or was called by what raised it.

    A script that calls our commands, as train_net.py does, does not count for what they raise.
    """
    owners = [_owner(file) for file in _frames(error.__traceback__)]
    # Errors of data loader workers have their traceback as text, of which the last counts.
    _, head, text = str(error).rpartition(_HEAD)
    owners += [_owner(file) for file in (_FRAME.findall(text) if head else ())]
    # A script of the user that calls us counts only if nothing of ours was called.
    return _called_user(owners) if "caller" in owners else "user" in owners


def calls_user_code(traceback: TracebackType | None) -> bool:
    """Return whether our code or Detectron2's has called code of the user in a traceback."""
    return _called_user([_owner(file) for file in _frames(traceback)])


def is_of_user(thing: Callable[..., Any]) -> bool:
    """Return whether the user defines a class or function; unknown ones count as such."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    return _owner(getattr(module, "__file__", None) or "<unknown>") == "user"


def note_part(error: BaseException, text: str) -> None:
    """Add a line to an error's traceback, where Python can (3.11)."""
    if sys.version_info >= (3, 11):
        error.add_note(text)


def _called_user(owners: list[str]) -> bool:
    return "caller" in owners and "user" in owners[owners.index("caller") :]


@cache
def _owner(file: str) -> str:
    """Whose a file is: "caller" (see `_CALLERS`), "library" or "user"."""
    if file.startswith("<"):  # made by a library, such as dataclasses, unless typed in
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
    """Where the imported ones of some packages are."""
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
