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

# Where the parameters are in the dicts that programs save: Detectron2, mmcv, pycls, Detectron.
_STATE_KEYS = ("model", "state_dict", "model_state", "blobs")


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Read a file of weights.

    Args:
        file: on this machine.

    Returns:
        What it holds, with the parameters as tensors on the CPU under "model", by their names in
        the file without DataParallel's "module.". What else was saved keeps its key.

    Raises:
        ValueError: it is damaged, holds no dict of tensors, something that is not read, or claims
            more than a file of its size can hold.
        OSError: it cannot be opened.
    """
    try:
        loaded = _with_state(_READERS.get(Path(file).suffix, _read_torch)(str(file)))
        _require_no_more(loaded["model"], os.path.getsize(file))
        return loaded
    except (OSError, ValueError):
        raise
    except Exception as error:  # damaged files make pickle and torch raise nearly anything
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"it is damaged or no checkpoint: {type(error).__name__}: {lines[0]}"
        ) from error


def read_beside_tensors(file: str | Path) -> Any:
    """What a file of `torch.save` holds; the content of its tensors is not read.

    Raises:
        Exception: of any kind, where the file is damaged or something else.
    """
    return _read_torch(str(file), mmap=True)


def _with_state(loaded: Any) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, and no dict of tensors")
    for key in _STATE_KEYS:
        if isinstance(loaded.get(key), Mapping):
            rest = {name: value for name, value in loaded.items() if name != key}
            return {**rest, "model": _tensors(loaded[key])}
    return {"model": _tensors(loaded)}


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
    """`torch.load` that makes tensors and containers; other objects become stand-ins.

    Training checkpoints of mmengine keep their logs as objects of their own.
    """
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
    except pickle.UnpicklingError as error:
        raise ValueError(_why_refused(error)) from error


def _why_refused(error: pickle.UnpicklingError) -> str:
    """Say on one line what torch says on several pages about a file that it refuses."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found is None:
        return "it is damaged or no checkpoint"
    return (
        f"it calls {found[1]}, which is not run: load it with the program that made it, and save "
        "its tensors alone"
    )


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes into old pickles for bytes."""
    if encoding != "latin1":
        raise ValueError(f"it has bytes as {encoding!r}, which are not read")
    return text.encode("latin1")


class _PickledType:
    """What a pickle says of an array's type. NumPy's own believes pickles that break memory."""

    def __init__(self, code: str = "", *_: Any):
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The type; of numbers alone, as others are not read from bytes."""
        found = np.dtype(self.code)
        if found.kind not in "biufc":
            raise ValueError(f"it has an array of {self.code!r:.80}: only numbers are read")
        return found.newbyteorder(self.order)


class _PickledArray:
    """What a pickle says of an array, which is made when it is asked for."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.type = _PickledType()
        self.content: bytes | bytearray | str = b""
        self.order: Literal["C", "F"] = "C"

    @classmethod
    def empty(cls, *_: Any) -> "_PickledArray":
        """As numpy's `_reconstruct`: a state follows."""
        return cls()

    @classmethod
    def scalar(cls, kind: _PickledType, content: bytes | str) -> Any:
        """As numpy's `scalar`, but a number of Python's."""
        return cls.from_buffer(content, kind, ()).tensor().item()

    @classmethod
    def from_buffer(
        cls, content: bytes | str, kind: _PickledType, shape: tuple[int, ...], order: Any = "C"
    ) -> "_PickledArray":
        """As numpy's `_frombuffer`."""
        array = cls()
        array.content, array.type, array.shape, array.order = content, kind, shape, order
        return array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, is_fortran, self.content = state
        self.order = "F" if is_fortran else "C"

    def tensor(self) -> Tensor:
        """The array. Bytes that are not those of its shape and type are an error."""
        content = self.content
        data = content.encode("latin1") if isinstance(content, str) else content
        array = np.frombuffer(data, self.type.numpy()).reshape(self.shape, order=self.order)
        native = array.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(array, native, order="C"))


# All that a .pkl may call; numpy 2 moved numpy.core to numpy._core.
_CALLABLES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}
for _core in ("numpy.core", "numpy._core"):
    _CALLABLES[f"{_core}.multiarray", "_reconstruct"] = _PickledArray.empty
    _CALLABLES[f"{_core}.multiarray", "scalar"] = _PickledArray.scalar
    _CALLABLES[f"{_core}.numeric", "_frombuffer"] = _PickledArray.from_buffer


class _ArrayUnpickler(pickle.Unpickler):
    """Notes arrays and makes containers, and refuses all else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLABLES:
            raise ValueError(f"it calls {module}.{name}, which is not run: only arrays are read")
        return _CALLABLES[module, name]


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


_READERS: dict[str, Callable[[str], Any]] = {
    ".pkl": _read_pickle,
    ".safetensors": _read_safetensors,
}
