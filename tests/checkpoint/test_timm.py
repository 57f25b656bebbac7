"""Weights of timm: local files of three kinds of names, and the hub's address."""

import re

import pytest
import torch

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.utils.errors import ConfigError
from tests.modeling.test_timm import needs_timm, timm_config
from tests.modeling.tiny import tiny_model

safetensors = pytest.importorskip("safetensors.torch")
pytestmark = [pytest.mark.detectron2, needs_timm]


def random_state(name):
    import timm

    torch.manual_seed(1)
    return timm.create_model(name).state_dict()


def assert_loaded(model, state):
    found = model.backbone.bottom_up.net.state_dict()
    found = {name: value for name, value in found.items() if "num_batches" not in name}
    assert found
    assert all(torch.equal(value, state[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224"]
)
def test_files_of_timm(name, tmp_path):
    state, file = random_state(name), tmp_path / "model.safetensors"
    safetensors.save_file(state, file)
    model = tiny_model(timm_config(name))
    SOLOCheckpointer(model).load(str(file))
    assert_loaded(model, state)


def test_files_of_convnexts_authors(tmp_path):
    """timm renames them itself."""
    state = random_state("convnext_atto")
    theirs = {}
    for name, value in state.items():
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2.", name)
        name = name.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        name = name.replace("conv_dw", "dwconv").replace("head.norm", "norm")
        theirs[name.replace("head.fc", "head")] = value
    torch.save({"model": theirs}, tmp_path / "convnext.pth")
    model = tiny_model(timm_config("convnext_atto"))
    SOLOCheckpointer(model).load(str(tmp_path / "convnext.pth"))
    assert_loaded(model, state)


def test_files_of_efficientnet_pytorch(tmp_path):
    state = random_state("efficientnet_lite0")
    theirs = {f"_{i}": value for i, value in enumerate(state.values())}
    theirs = {"_conv_stem.weight": theirs.pop("_0"), **theirs}
    torch.save(theirs, tmp_path / "lite0.pth")
    model = tiny_model(timm_config("efficientnet_lite0"))
    SOLOCheckpointer(model).load(str(tmp_path / "lite0.pth"))
    assert_loaded(model, state)


def test_a_whole_model_of_ours_is_none_of_timms(tmp_path):
    model = tiny_model(timm_config("lcnet_050"))
    SOLOCheckpointer(model, str(tmp_path)).save("ours")
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    SOLOCheckpointer(model, whole=True).load(str(tmp_path / "ours.pth"))
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("resnet34", r"layer1\.2\.bn1\.bias"),  # has all names of a ResNet-18 and more
        ("convnext_atto", "no known format"),
    ],
)
def test_files_of_other_models_are_refused(file, message, tmp_path):
    torch.save(random_state(file), tmp_path / "other.pth")
    model = tiny_model(timm_config("resnet18"))
    with pytest.raises(ConfigError, match=message):
        SOLOCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_hub(tmp_path, monkeypatch):
    import huggingface_hub

    state, asked = random_state("lcnet_050"), []
    safetensors.save_file(state, tmp_path / "model.safetensors")

    def download(repository, file, **others):
        asked.append((repository, file))
        if len(asked) > 1:
            raise OSError("no network")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = tiny_model(timm_config("lcnet_050"))
    assert asked == []
    SOLOCheckpointer(model).load("timm://lcnet_050.ra2_in1k")
    assert asked == [("timm/lcnet_050.ra2_in1k", "model.safetensors")]
    assert_loaded(model, state)
    with pytest.raises(ConfigError, match="timm://lcnet_050.ra2_in1k.*no network"):
        SOLOCheckpointer(model).load("timm://lcnet_050.ra2_in1k")
    with pytest.raises(ConfigError, match="no weights"):
        SOLOCheckpointer(model).load("timm://lcnet_05")
