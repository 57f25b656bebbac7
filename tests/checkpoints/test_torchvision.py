"""ResNets of torchvision: every parameter arrives, and the features are torchvision's."""

import pytest
import torch
import torchvision

from solo_d2.checkpoints.torchvision import convert_torchvision_resnet, is_torchvision_resnet

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.modeling import build_model  # noqa: E402

from solo_d2.errors import ConfigError  # noqa: E402
from solo_d2.modeling.checkpointer import SOLOCheckpointer  # noqa: E402
from tests.modeling.tiny import tiny_config  # noqa: E402


def light_config(depth):
    cfg = tiny_config()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    return cfg


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_backbone_computes_what_torchvision_does(depth, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}").eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = build_model(light_config(depth)).eval()
    SOLOCheckpointer(model).load(str(tmp_path / "resnet.pth"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model.backbone.bottom_up(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in (1, 2, 3, 4):
            y = getattr(theirs, f"layer{stage}")(y)
            torch.testing.assert_close(features[f"res{stage + 1}"], y, rtol=1e-4, atol=1e-4)


def test_no_parameter_of_the_backbone_is_left_out():
    state = torchvision.models.resnet18().state_dict()
    assert is_torchvision_resnet(state)
    backbone = build_model(light_config(18)).backbone.bottom_up.state_dict()
    assert set(convert_torchvision_resnet(state)) == set(backbone)


def test_unknown_keys_are_refused_and_other_models_not_taken():
    with pytest.raises(ValueError, match="'layer1.0.attention'"):
        convert_torchvision_resnet({"layer1.0.attention": torch.zeros(1)})
    assert not is_torchvision_resnet({"backbone.bottom_up.stem.conv1.weight": 0})


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint_is_named(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"The weights .*weights\.pth can't be used: \w+"):
        SOLOCheckpointer(torch.nn.Linear(1, 1)).load(str(file))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.pth can't be used"):
        SOLOCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "gone.pth"))
