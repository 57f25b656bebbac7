"""Opens checkpoints without running anything that they hold.

Three kinds of file: what `torch.save` writes (.pth, .pyth and any other name), pickles of numpy
arrays (.pkl, Detectron2's model zoo) and safetensors. None of them needs trust: of a pickle only
arrays, tensors and containers are made, and none that is larger than its file.
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

# Where the parameters are in the dicts that programs save: Detectron2, mmcv, pycls, Detectron.
_STATE_KEYS = ("model", "state_dict", "model_state", "blobs")


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Read a file of weights.

    Returns:
        What it holds, with the parameters as tensors on the CPU under "model", by their names in
        the file without DataParallel's "module.". What else was saved keeps its key.

    Raises:
        ValueError: it is damaged, holds no dict of tensors, something that is not read, or claims
            more than a file of its size can hold.
        OSError: it cannot be opened.
    """
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    try:
        loaded = readers.get(Path(file).suffix, _read_torch)(str(file))
        if not isinstance(loaded, Mapping):
            raise ValueError(f"it holds a {type(loaded).__name__}, and no dict of tensors")
        rest = dict(loaded)
        keys = (key for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping))
        key = next(keys, None)
        state, rest = (loaded, {}) if key is None else (rest.pop(key), rest)
        model = _tensors(state)
        _require_no_more(model, os.path.getsize(file))
        return {**rest, "model": model}
    except (OSError, ValueError):
        raise
    except Exception as error:  # damaged files make pickle and torch raise nearly anything
        raise ValueError(f"it is damaged or no checkpoint: {first_line(error)}") from error


def read_beside_tensors(file: str | Path) -> Any:
    """Read a file of `torch.save` without the content of its tensors; errors are of any kind."""
    return _read_torch(str(file), mmap=True)


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if isinstance(value, _PickledArray):
            value = value.tensor()
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(f"it holds no dict of tensors: {name!r} is a {type(value).__name__}")
        tensors[name] = value
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _require_no_more(state: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that are larger than their file: views of few numbers, or of none."""
    for name, value in state.items():
        num = value.numel()
        dense = value.layout is torch.strided and value.device.type == "cpu"
        if dense:  # of the numbers behind it torch 2.6 believes what the file says
            num = max(num, value.untyped_storage().nbytes() // value.element_size())
        if not dense or num * value.element_size() > size:
            raise ValueError(
                f"{name} claims to have {num} numbers, which a file of {size} bytes does not hold"
            )


class _StandIn:
    """In place of an object that is not read, such as a log; takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Containers that torch does not read, as those that it fills.
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.deque": lambda *_: [],
    "collections.defaultdict": lambda *_: {},
}


def _read_torch(file: str, *, mmap: bool = False) -> Any:
    """`torch.load` of tensors and containers; other objects, as mmengine's logs, get stand-ins."""
    others: list[str] = []
    if zipfile.is_zipfile(file):  # else of torch before 1.6, or no checkpoint
        with zipfile.ZipFile(file) as archive:
            stored = all(x.compress_type == zipfile.ZIP_STORED for x in archive.infolist())
        if not stored:  # a few bytes could become gigabytes
            raise ValueError("it is compressed, as torch writes no checkpoint")
        others = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    known: list[Any] = [(_CONTAINERS.get(name, _StandIn), name) for name in others]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:  # whose message has several pages
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError("it is damaged or no checkpoint") from error
        raise ValueError(
            f"it calls {found[1]}, which is not run: load it with the program that made it, and "
            "save its tensors alone"
        ) from error


def _read_pickle(file: str) -> Any:
    with open(file, "rb") as opened:
        for code, place, _ in pickletools.genops(opened):
            # Python makes a list as long as the highest place that is asked for.
            if code.name.endswith("PUT") and cast(int, place) > os.path.getsize(file):
                raise ValueError("it is damaged: it counts more objects than it has bytes")
        opened.seek(0)
        return _ArrayUnpickler(opened, encoding="latin1").load()


def _read_safetensors(file: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError("reading .safetensors needs `pip install safetensors`") from error
    return load_file(file)


class _PickledType:
    """What a pickle says of an array's type. NumPy's own believes pickles that break memory."""

    def __init__(self, code: str = "", *_: Any):
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        found = np.dtype(self.code)
        if found.kind not in "biufc":
            raise ValueError(f"it has an array of {self.code!r:.80}: only numbers are read")
        return found.newbyteorder(self.order)


class _PickledArray:
    """What a pickle says of an array, which is made when it is asked for.

    It is constructed as numpy's `_frombuffer` is, or without arguments where a state follows.
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
        """The array. Bytes that are not those of its shape and type are an error."""
        content = self.content
        data = content.encode("latin1") if isinstance(content, str) else content
        kind = (self.type or _PickledType()).numpy()
        array = np.frombuffer(data, kind).reshape(self.shape, order=self.order)
        return torch.from_numpy(np.array(array, kind.newbyteorder("="), order="C"))


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes into old pickles for bytes."""
    if encoding != "latin1":
        raise ValueError(f"it has bytes as {encoding!r}, which are not read")
    return text.encode("latin1")


# All that a .pkl may call; numpy 2 moved numpy.core to numpy._core.
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
    """Notes arrays and makes containers, and refuses all else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLABLES:
            raise ValueError(f"it calls {module}.{name}, which is not run: only arrays are read")
        return _CALLABLES[module, name]
