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

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.convert import plan_conversion
from solo_d2.checkpoint.reading import read_checkpoint
from solo_d2.utils.errors import ConfigError
from tests.checkpoint import published

ROOT = Path(__file__).resolve().parents[2]


class Reduced:
    """Pickled as a call, and perhaps a state."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def evil_contents(target):
    """Contents that make a folder when they are unpickled."""
    dangers = [
        Reduced(os.mkdir, (str(target),)),
        Reduced(eval, (f"__import__('os').mkdir({str(target)!r})",)),
        Reduced(os.system, (f"mkdir {target}",)),
    ]
    for danger in (*dangers, *(np.array([danger], dtype=object) for danger in dangers)):
        yield {"model": {"a": danger}}
        yield {"model": {"a": torch.ones(2)}, "optimizer": [{"deep": (danger,)}]}
        yield danger


def write_evil(file, content):
    if file.suffix == ".pkl":
        file.write_bytes(pickle.dumps(content, protocol=0 if "old" in file.name else 5))
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


@pytest.mark.parametrize(
    "name", ["a.pth", "old.pth", "tar.pth", "nested.pth", "a.pkl", "old.pkl", "a.pyth"]
)
def test_checkpoints_run_nothing(tmp_path, name):
    refused = 0
    for content in evil_contents(tmp_path / "made"):
        write_evil(tmp_path / name, content)
        try:
            read = read_checkpoint(tmp_path / name)
        except ValueError as error:
            refused += "\n" not in str(error)
        else:
            assert all(isinstance(value, torch.Tensor) for value in read["model"].values())
        assert not (tmp_path / "made").exists()
    assert refused >= 12


def assert_refused(file, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(file)


def test_safetensors_that_lie(tmp_path):
    pytest.importorskip("safetensors")
    file = tmp_path / "a.safetensors"
    headers = [
        json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
        for shape, offsets in (([10**12], [0, 16]), ([4], [0, 4 * 10**12]), ([4], [-16, 0]))
    ]
    for header, length in (*((header, len(header)) for header in headers), ("{}", 2**60)):
        file.write_bytes(struct.pack("<Q", length) + header.encode() + bytes(16))
        assert_refused(file, "damaged")


def rewrite(file, change, how=zipfile.ZIP_STORED):
    """Pack the parts of torch's file anew."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))


def test_archives_that_unpack_to_gigabytes(tmp_path):
    file = tmp_path / "bomb.pth"
    torch.save({"model": {"a": torch.zeros(4)}}, file)
    rewrite(
        file,
        lambda name, data: bytes(2**26) if name.endswith("data/0") else data,
        zipfile.ZIP_DEFLATED,
    )
    assert file.stat().st_size < 2**18
    assert_refused(file, "it is compressed")


def test_tensors_that_claim_more_than_the_file_has(tmp_path):
    file = tmp_path / "claims.pth"
    for tensor in (
        torch.zeros(1).expand(10**6, 10**5),
        torch.zeros(1, device="meta").expand(10**12),
        torch.sparse_coo_tensor(torch.zeros(2, 0), [], (10**9, 10**9)),
    ):
        torch.save({"model": {"head.class_logits.weight": tensor}}, file)
        assert_refused(file, "claims 1[0-9]* values")
    torch.save({"model": {"a": torch.zeros(4)}}, file)
    # The storage's length, as the pickle has it.
    longer = b"J" + (10**9).to_bytes(4, "little")
    rewrite(file, lambda name, data: re.sub(rb"(cpuq.)K\x04", lambda m: m[1] + longer, data))
    assert_refused(file, "damaged|claims")


FLOAT = np.dtype("f8")
RECONSTRUCT = np.zeros(1).__reduce__()[0]


def array(shape, kind, data):
    """An array as NumPy pickles it: a call and a state."""
    return Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, kind, False, data))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (array((1,), np.dtype("O"), bytes(8)), "only numbers|no dict"),
        (array((10**11,), FLOAT, b""), "reshape|damaged"),
        (array((-1, 3), np.dtype("f4"), b"1234"), "reshape|damaged"),
        (array((2,), FLOAT, b"1234"), "buffer size|damaged"),
        (Reduced(np.ndarray, ((10**11,), FLOAT)), "reshape|damaged"),
    ],
)
def test_pickled_arrays_that_lie(tmp_path, lie, message):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"a": lie}}))
    assert_refused(tmp_path / "a.pkl", message)


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", None, None, None, -1, -1, 63),  # it says that it holds objects
        (3, "<", None, ("a",), {"a": (np.dtype("O"), 10**6)}, 8, 1, 0),  # fields beyond the end
    ],
)
def test_eight_bytes_are_a_number_whatever_their_type_says_of_itself(tmp_path, state):
    """NumPy's own types believe such states, and read and write anywhere then."""
    kind = Reduced(np.dtype, ("f8", False, True), state)
    content = {"model": {"a": array((1,), kind, b"\x01" * 8)}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert read_checkpoint(tmp_path / "a.pkl")["model"]["a"].dtype == torch.float64


def test_a_pickle_that_counts_to_gigabytes(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # the 2^31st object
    assert_refused(tmp_path / "a.pkl", "more objects than it has bytes")


@pytest.mark.parametrize(
    "name", [b"../model.pth", b"/etc/passwd", b"a/../../x.pth", b"a/b.pth", b"", b"\xff\xfe"]
)
def test_last_checkpoint_stays_in_its_folder(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model": torch.nn.Linear(1, 1).state_dict()}, tmp_path / "model.pth")
    (folder / "last_checkpoint").write_bytes(name)
    with pytest.raises(
        ConfigError, match="last_checkpoint (names .* not in its folder|is damaged)"
    ):
        SOLOCheckpointer(torch.nn.Linear(1, 1), str(folder)).resume_or_load("", resume=True)


@pytest.mark.parametrize(
    "name", ["ins_head.cate_tower.0.weight", "backbone.bottom_up.res2.0.conv2.weight"]
)
def test_shapes_of_a_file_do_not_decide_about_memory(tmp_path, name):
    """A model of this width would have 10^12 parameters."""
    wide = torch.zeros(320_000, 1, 1, 1, dtype=torch.int8)
    torch.save({**published.adelaidet(18), name: wide}, tmp_path / "wide.pth")
    with pytest.raises(ConfigError, match=r"wide\.pth"):
        plan_conversion(tmp_path / "wide.pth", ROOT / "configs/base/solov2_fpn.yaml")
