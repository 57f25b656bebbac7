"""Reading checkpoints without running code from them.

Supported are files of `torch.save` (.pth, .pyth and any other name), pickles of NumPy arrays (.pkl,
Detectron2's model zoo) and safetensors. Files need not be trusted: only arrays, tensors and
containers are created from pickles, and none larger than the file.
"""

import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from solo_d2.utils.errors import first_line

# Keys of the parameters in the files of Detectron2, mmcv, pycls and Detectron.
_STATE_KEYS = ("model", "state_dict", "model_state", "blobs")


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Read a file of weights.

    Returns:
        The content of the file, with the parameters as CPU tensors under "model", by their names
        without DataParallel's "module.". Other content keeps its keys.

    Raises:
        ValueError: the file is damaged, is not a dict of tensors, contains unsupported objects, or
            claims more data than its size allows.
        OSError: the file cannot be opened.
    """
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    try:
        loaded = readers.get(Path(file).suffix, read_torch)(str(file))
        if not isinstance(loaded, Mapping):
            raise ValueError(f"it contains a {type(loaded).__name__}, no dict of tensors")
        rest = dict(loaded)
        keys = (key for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping))
        key = next(keys, None)
        state, rest = (loaded, {}) if key is None else (rest.pop(key), rest)
        model = _tensors(state)
        _require_no_more(model, os.path.getsize(file))
        return {**rest, "model": model}
    except (OSError, ValueError):
        raise
    except Exception as error:  # pickle and torch raise errors of many types for damaged files
        raise ValueError(f"it is damaged or no checkpoint: {first_line(error)}") from error


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if isinstance(value, _PickledArray):
            value = value.tensor()
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(f"it is no dict of tensors: {name!r} is a {type(value).__name__}")
        tensors[name] = value
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _require_no_more(state: Mapping[str, Tensor], size: int) -> None:
    """Reject tensors larger than their file, such as expanded views."""
    for name, value in state.items():
        num = value.numel()
        dense = value.layout is torch.strided and value.device.type == "cpu"
        if dense:  # torch 2.6 does not check the size of the storage
            num = max(num, value.untyped_storage().nbytes() // value.element_size())
        if not dense or num * value.element_size() > size:
            raise ValueError(f"{name} claims {num} values, too many for a file of {size} bytes")


class _StandIn:
    """Placeholder for an object that is not read, such as a log."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Replacements for containers that torch does not read.
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.deque": lambda *_: [],
    "collections.defaultdict": lambda *_: {},
}


def read_torch(file: str, *, mmap: bool = False) -> Any:
    """Load tensors and containers; placeholders replace other objects, such as mmengine's logs.

    With `mmap`, the content of tensors is not read. May raise any error.
    """
    others: list[str] = []
    if zipfile.is_zipfile(file):  # otherwise written by torch before 1.6, or no checkpoint
        with zipfile.ZipFile(file) as archive:
            stored = all(x.compress_type == zipfile.ZIP_STORED for x in archive.infolist())
        if not stored:  # a few bytes could decompress to gigabytes
            raise ValueError("it is compressed, unlike files of torch")
        others = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    known: list[Any] = [(_CONTAINERS.get(name, _StandIn), name) for name in others]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:  # with a message of several pages
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError("it is damaged or no checkpoint") from error
        raise ValueError(
            f"it calls {found[1]}, which is not allowed: load it with the program that wrote it, "
            "and save only its tensors"
        ) from error


def _read_pickle(file: str) -> Any:
    with open(file, "rb") as opened:
        for code, place, _ in pickletools.genops(opened):
            # Python allocates a list of the highest index that occurs.
            if code.name.endswith("PUT") and cast(int, place) > os.path.getsize(file):
                raise ValueError("it is damaged: it claims more objects than it has bytes")
        opened.seek(0)
        return _ArrayUnpickler(opened, encoding="latin1").load()


def _read_safetensors(file: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError("reading .safetensors needs `pip install safetensors`") from error
    return load_file(file)


class _PickledType:
    """The dtype of a pickled array. NumPy's own class can be made to corrupt memory."""

    def __init__(self, code: str = "", *_: Any):
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        found = np.dtype(self.code)
        if found.kind not in "biufc":
            raise ValueError(f"it has an array of {self.code!r:.80}: only numbers are allowed")
        return found.newbyteorder(self.order)


class _PickledArray:
    """A pickled array, which is created on demand.

    Constructed like NumPy's `_frombuffer`, or without arguments if a state follows.
    """

    def __init__(
        self,
        content: bytes | str = b"",
        kind: _PickledType | None = None,
        shape: tuple[int, ...] = (),
        order: Literal["C", "F"] = "C",
    ):
        self.content, self.type, self.shape, self.order = content, kind, shape, order

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, is_fortran, self.content = state
        self.order = "F" if is_fortran else "C"

    def tensor(self) -> Tensor:
        """Create the array; raises an error if the bytes do not match shape and type."""
        content = self.content
        data = content.encode("latin1") if isinstance(content, str) else content
        kind = (self.type or _PickledType()).numpy()
        array = np.frombuffer(data, kind).reshape(self.shape, order=self.order)
        return torch.from_numpy(np.array(array, kind.newbyteorder("="), order="C"))


def _latin1(text: str, encoding: str) -> bytes:
    """Decode bytes as Python 3 writes them to old pickles."""
    if encoding != "latin1":
        raise ValueError(f"it has bytes as {encoding!r}, which are not supported")
    return text.encode("latin1")


# All functions that a .pkl may call; NumPy 2 moved numpy.core to numpy._core.
_CALLABLES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}
for _core in ("numpy.core", "numpy._core"):
    _CALLABLES |= {
        (f"{_core}.multiarray", "_reconstruct"): lambda *_: _PickledArray(),
        (f"{_core}.multiarray", "scalar"): lambda kind, data: (
            _PickledArray(data, kind).tensor().item()
        ),
        (f"{_core}.numeric", "_frombuffer"): _PickledArray,
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays and containers only; reject everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLABLES:
            raise ValueError(f"it calls {module}.{name}, but only arrays are allowed")
        return _CALLABLES[module, name]
