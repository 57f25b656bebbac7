"""Kinds of files that are read; test_unfriendly_checkpoints.py: what they hold is not run."""

import collections
import contextlib
import pickle

import numpy as np
import pytest
import torch

from solo_d2.checkpoint.reading import read_checkpoint

STATE = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2, dtype=torch.int64)}


class Log:
    """An object that is not read, with containers and arrays inside, as mmengine saves them."""

    def __init__(self):
        self.values = collections.deque([np.float64(1)])
        self.counts = collections.defaultdict(list, a=np.arange(3))
        self.reduce = {"mean": np.mean, "own": Log.last}

    def last(self):
        return self.values[-1]


def assert_state(read):
    assert set(read["model"]) == set(STATE)
    for name, value in STATE.items():
        assert torch.equal(read["model"][name], value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state", None])
def test_files_of_torch(tmp_path, key, zipped):
    content = STATE if key is None else {"meta": {"CLASSES": ("cat",)}, key: STATE}
    file = tmp_path / "weights.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(file)
    assert_state(read)
    assert key is None or read["meta"] == {"CLASSES": ("cat",)}


def test_objects_beside_the_weights_become_nothing(tmp_path):
    file = tmp_path / "epoch_12.pth"
    torch.save({"state_dict": STATE, "message_hub": {"loss": Log()}, "n": np.float64(1)}, file)
    read = read_checkpoint(file)
    assert_state(read)
    assert type(read["message_hub"]["loss"]).__name__ == "_StandIn"


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_arrays(tmp_path, protocol):
    file = tmp_path / "R-50.pkl"
    arrays = {name: value.numpy() for name, value in STATE.items()}
    content = {"model": arrays, "__author__": "somebody", "scale": np.float32(2)}
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_checkpoint(file)
    assert_state(read)
    assert read["scale"] == 2
    read["model"]["a"][0] = 7  # the memory is its own


def test_pickle_of_python_2(tmp_path):
    """A dict of one array of float32, as Python 2 and numpy 1 wrote it: text for bytes."""
    content = (
        b"\x80\x02}U\x06conv_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0tbs."
    )
    file = tmp_path / "old.pkl"
    file.write_bytes(content)
    assert read_checkpoint(file)["model"]["conv_w"].tolist() == [1.0, -2.0]


def test_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    library.save_file(STATE, tmp_path / "model.safetensors")
    assert_state(read_checkpoint(tmp_path / "model.safetensors"))


def test_prefix_of_data_parallel(tmp_path):
    torch.save({f"module.{k}": v for k, v in STATE.items()}, tmp_path / "weights.pth")
    assert_state(read_checkpoint(tmp_path / "weights.pth"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", ["pth", "old.pth", "pkl", "safetensors"])
def test_damaged_files(tmp_path, suffix):
    """Bytes that were changed or cut off give tensors or a ValueError."""
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pkl":
        file.write_bytes(pickle.dumps({name: value.numpy() for name, value in STATE.items()}))
    elif suffix == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(STATE, file)
    else:
        torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=suffix == "pth")
    whole = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (20,), generator=generator).tolist():
        for damaged in (whole[:place], whole[:place] + b"\xb7" + whole[place + 1 :]):
            file.write_bytes(damaged)
            with contextlib.suppress(ValueError):  # and nothing else
                read_checkpoint(file)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"a": "text"}, {"a": [1.0]}])
def test_what_is_no_dict_of_tensors(tmp_path, suffix, content):
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match="no dict of tensors"):
        read_checkpoint(file)
