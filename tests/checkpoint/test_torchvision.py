"""ResNets of torchvision: every parameter arrives, and the features are torchvision's."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone, build_model

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.derive import derive_config
from solo_d2.checkpoint.formats import TORCHVISION, recognise
from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import tiny_config


def light_config(depth):
    cfg = tiny_config()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    return cfg


@pytest.mark.parametrize("depth", [18, 50])
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


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "resnext50_32x4d"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_every_resnet_fits_the_backbone_that_its_shapes_ask_for(name, library):
    with torch.device("meta"):
        if library == "timm":
            timm = pytest.importorskip("timm")
            state = timm.create_model(name).state_dict()
        else:
            state = torchvision.models.get_model(name).state_dict()
    assert recognise(state) is TORCHVISION
    converted = TORCHVISION.convert(state).state
    cfg = tiny_config()
    for key, value in derive_config(converted).items():
        cfg.merge_from_list([key, value])
    backbone = build_backbone(cfg).bottom_up.state_dict()
    shapes = {f"backbone.bottom_up.{key}": value.shape for key, value in backbone.items()}
    assert {key: value.shape for key, value in converted.items()} == shapes


def test_other_resnets_of_timm_are_refused(tmp_path):
    """A deeper stem, and blocks with squeeze and excitation."""
    timm = pytest.importorskip("timm")
    model = build_model(light_config(50))
    for name, message in (
        ("resnet26d", "no known format"),
        ("seresnet50", r"layer1\.0\.se\.fc1\.weight"),
    ):
        with torch.device("meta"):
            state = timm.create_model(name).state_dict()
        state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in state.items()}
        torch.save(state, tmp_path / "resnet.pth")
        with pytest.raises(ConfigError, match=message):
            SOLOCheckpointer(model).load(str(tmp_path / "resnet.pth"))
