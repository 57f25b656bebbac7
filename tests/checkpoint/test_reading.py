"""What is read of a file; tests/reliability/test_unfriendly_checkpoints.py has what is refused."""

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


@pytest.fixture(params=["a.pth", "old.pth", "a.pkl", "old.pkl", "a.safetensors"])
def file(request, tmp_path):
    """A file of each kind to write to."""
    return tmp_path / request.param


def write(file, content):
    if file.suffix == ".pkl":
        file.write_bytes(pickle.dumps(content, protocol=2 if file.stem == "old" else 5))
    elif file.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(content, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=file.stem != "old")


def arrays(file, state):
    return {k: v.numpy() for k, v in state.items()} if file.suffix == ".pkl" else state


def test_parameters_are_found(file):
    state = arrays(file, {f"module.{k}": v for k, v in STATE.items()})
    others = {"meta": {"CLASSES": ("cat",)}, "scale": 2.0}
    if file.suffix == ".pkl":
        others["scale"] = np.float32(2)
    keys = ("model", "state_dict", "model_state") if file.suffix != ".safetensors" else ()
    for content in (state, *({**others, key: state} for key in keys)):
        write(file, content)
        read = read_checkpoint(file)
        model = read.pop("model")
        assert read == ({} if content is state else others)
        assert model.keys() == STATE.keys()
        for name, value in STATE.items():
            assert torch.equal(model[name], value)
            model[name] += 1  # the memory is its own


def test_objects_beside_the_weights_become_nothing(tmp_path):
    write(tmp_path / "a.pth", {"state_dict": STATE, "message_hub": {"loss": Log()}})
    read = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(read["model"]["a"], STATE["a"])
    assert not isinstance(read["message_hub"]["loss"], Log)


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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files(file):
    """Bytes that were changed or cut off give tensors or a ValueError."""
    write(file, arrays(file, STATE))
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
    write(tmp_path / f"a.{suffix}", content)
    with pytest.raises(ValueError, match="no dict of tensors"):
        read_checkpoint(tmp_path / f"a.{suffix}")
