"""Checkpoints of strangers run no code, name no other files and cost no memory."""

import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer  # noqa: E402
from solo_d2.checkpoint.convert import plan_conversion  # noqa: E402
from solo_d2.checkpoint.reading import read_checkpoint  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


class Danger:
    """Makes a folder when it is unpickled."""

    def __init__(self, target, call=os.mkdir):
        self.made = call, (str(target),)

    def __reduce__(self):
        return self.made


def evil_contents(target):
    dangers = [Danger(target), Danger(f"__import__('os').mkdir({str(target)!r})", eval)]
    dangers.append(Danger(f"mkdir {target}", os.system))
    arrays = [np.array([danger], dtype=object) for danger in dangers]
    for danger in (*dangers, *arrays):
        yield {"model": {"a": danger}}
        yield {"model": {"a": torch.ones(2)}, "optimizer": [{"deep": (danger,)}]}
        yield danger


def write_evil(file, content):
    if file.suffix == ".pkl":
        file.write_bytes(pickle.dumps(content))
    elif "tar" in file.name:
        with tarfile.open(file, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                data = pickle.dumps(content)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    elif "nested" in file.name:
        inner = io.BytesIO()
        torch.save(content, inner)
        torch.save({"model": pickle.dumps(content), "zip": inner.getvalue()}, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization="old" not in file.name)


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "tar.pth", "nested.pth", "a.pkl", "a.pyth"])
def test_checkpoints_run_nothing(tmp_path, name):
    target = tmp_path / "made"
    cases = refused = 0
    for content in evil_contents(target):
        write_evil(tmp_path / name, content)
        cases += 1
        try:
            read = read_checkpoint(tmp_path / name)
        except ValueError as error:
            refused += "\n" not in str(error)
        else:
            assert all(isinstance(value, torch.Tensor) for value in read["model"].values())
        assert not target.exists()
    assert cases == 18
    assert refused >= 12


def test_safetensors_that_lie(tmp_path):
    pytest.importorskip("safetensors")
    file = tmp_path / "a.safetensors"
    for shape, offsets in (([10**12], [0, 16]), ([4], [0, 4 * 10**12]), ([4], [-16, 0])):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
        file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(file)
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(file)


def rewrite(file, change=lambda name, data: data, how=zipfile.ZIP_STORED):
    """Pack the parts of torch's file anew."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))


def test_archives_that_unpack_to_gigabytes(tmp_path):
    file = tmp_path / "bomb.pth"
    torch.save({"model": {"a": torch.zeros(4)}}, file)
    rewrite(file, lambda name, data: bytes(2**26) if name.endswith("data/0") else data,
        zipfile.ZIP_DEFLATED)  # fmt: skip
    assert file.stat().st_size < 2**18
    with pytest.raises(ValueError, match="it is compressed"):
        read_checkpoint(file)


def test_tensors_that_claim_more_than_the_file_has(tmp_path):
    file = tmp_path / "claims.pth"
    few = torch.zeros(1)
    for tensor in (few.expand(10**6, 10**5), torch.zeros(1, device="meta").expand(10**12),
        torch.sparse_coo_tensor(torch.zeros(2, 0), [], (10**9, 10**9))):  # fmt: skip
        torch.save({"model": {"head.class_logits.weight": tensor}}, file)
        with pytest.raises(ValueError, match="claims to have 1[0-9]* numbers"):
            read_checkpoint(file)
    torch.save({"model": {"a": torch.zeros(4)}}, file)
    # The storage's length, as the pickle has it.
    longer = b"J" + (10**9).to_bytes(4, "little")
    rewrite(file, lambda name, data: re.sub(rb"(cpuq.)K\x04", lambda m: m[1] + longer, data))
    with pytest.raises(ValueError, match="damaged|claims"):
        read_checkpoint(file)


class Reduced:
    """Pickled as a call and a state."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def test_pickled_arrays_that_lie(tmp_path):
    """NumPy's own types and arrays believe such states, and read and write anywhere then."""
    reconstruct = np.zeros(1).__reduce__()[0]
    start = (reconstruct, (np.ndarray, (0,), b"b"))
    huge = np.dtype("f8"), (3, "<", None, None, None, -1, -1, 63)
    kinds = {
        "an object": np.dtype("O"),
        "a type that says it holds objects": Reduced(np.dtype, ("f8", False, True), huge[1]),
        "fields beyond the end": Reduced(
            np.dtype, ("f8",), (3, "<", None, ("a",), {"a": (np.dtype("O"), 10**6)}, 8, 1, 0)
        ),
    }
    arrays = [Reduced(*start, (1, (1,), kind, False, b"\x01" * 8)) for kind in kinds.values()]
    arrays += [
        Reduced(*start, (1, (10**11,), np.dtype("f8"), False, b"")),
        Reduced(*start, (1, (-1, 3), np.dtype("f4"), False, b"1234")),
        Reduced(*start, (1, (2,), np.dtype("f8"), False, b"1234")),
        Reduced(np.ndarray, ((10**11,), np.dtype("f8"))),
    ]
    file = tmp_path / "lies.pkl"
    for index, array in enumerate(arrays):
        file.write_bytes(pickle.dumps({"model": {"a": array}}))
        if index in (1, 2):  # eight bytes are a number, whatever the type says of itself
            assert read_checkpoint(file)["model"]["a"].dtype == torch.float64
            continue
        with pytest.raises(
            ValueError, match="damaged|only numbers|no dict|cannot reshape|buffer size"
        ):
            read_checkpoint(file)
    file.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # the 2^31st object of seven bytes
    with pytest.raises(ValueError, match="more objects than it has bytes"):
        read_checkpoint(file)


@pytest.mark.parametrize("name", ["../model.pth", "/etc/passwd", "a/../../x.pth", "a/b.pth", ""])
def test_last_checkpoint_stays_in_its_folder(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model": torch.nn.Linear(1, 1).state_dict()}, tmp_path / "model.pth")
    (folder / "last_checkpoint").write_text(name)
    with pytest.raises(ConfigError, match="not in its folder"):
        SOLOCheckpointer(torch.nn.Linear(1, 1), str(folder)).resume_or_load("", resume=True)
    (folder / "last_checkpoint").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="last_checkpoint is damaged"):
        SOLOCheckpointer(torch.nn.Linear(1, 1), str(folder)).get_checkpoint_file()


def test_shapes_of_a_file_do_not_decide_about_memory(tmp_path):
    """A model of this width would have 10^12 parameters."""
    from tests.checkpoint.published import adelaidet, values

    file, state = tmp_path / "wide.pth", values(adelaidet(18))
    for name in ("ins_head.cate_tower.0.weight", "backbone.bottom_up.res2.0.conv2.weight"):
        wide = torch.zeros(320_000, 1, 1, 1, dtype=torch.int8)
        torch.save({**state, name: wide}, file)
        with pytest.raises(ConfigError, match="wide.*(does not fit|no model has weights like)"):
            plan_conversion(file, ROOT / "configs/base/solov2_fpn.yaml")
