"""Backbones of timm: a dozen families train, what is frozen, normalisation, names, refusals."""

import importlib.util
import pickle

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from solo_d2.engine import Trainer
from solo_d2.modeling.backbones.timm import pixel_statistics
from solo_d2.modeling.fusion import fuse_batch_norms
from solo_d2.utils.errors import ConfigError
from tests.config.test_configs import unread
from tests.modeling.test_backbones import (
    assert_trains,
    groups_of,
    read_levels,
    step,
    trainable,
    without_gradient,
)
from tests.modeling.tiny import image, tiny_config, tiny_model

# timm takes half a second to import, so the tests do it, and collecting them does not.
needs_timm = pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="needs timm")
pytestmark = [pytest.mark.detectron2, needs_timm]


FAMILIES = (
    *("resnet10t", "convnext_atto", "efficientnet_lite0", "mobilenetv4_conv_small", "pvt_v2_b0"),
    *("mobileone_s0", "ghostnet_050", "edgenext_xx_small"),
)
MORE_FAMILIES = (
    *("swin_tiny_patch4_window7_224", "regnetx_002", "efficientvit_b0", "hrnet_w18_small"),
    *("mambaout_femto", "starnet_s1"),
)


def timm_config(name, *overrides, head="SOLOv2Head"):
    """A tiny model on a backbone of timm, of which nothing is frozen but statistics."""
    cfg = tiny_config(head)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_solo_timm_fpn_backbone", 0
    cfg.MODEL.TIMM.NAME = name
    cfg.merge_from_list(list(overrides))
    return cfg


def build(name, *overrides):
    return build_backbone(timm_config(name, *overrides), ShapeSpec(channels=3))


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(x, marks=pytest.mark.reliability) for x in MORE_FAMILIES)]
)
def test_families_train(name):
    assert_trains(timm_config(name, "SOLVER.OPTIMIZER", "AdamW"))


def test_features_are_timms():
    backbone = build("resnet10t", "INPUT.FORMAT", "RGB").bottom_up.eval()
    import timm

    theirs = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict(backbone.net.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 96)
    features = backbone(images)
    assert list(features)[-4:] == ["res2", "res3", "res4", "res5"]
    for name, expected in zip(list(features)[-4:], theirs(images), strict=True):
        assert torch.equal(features[name], expected)
        assert backbone.output_shape()[name].channels == expected.shape[1]


def test_images_of_either_channel_order_are_normalised_as_timm_says():
    name = "tf_efficientnet_lite0"  # mean and standard deviation 0.5
    assert pixel_statistics(timm_config(name)) == ([127.5] * 3, [127.5] * 3)
    results = []
    sample = image()
    for order in ("RGB", "BGR"):
        cfg = timm_config("convnext_atto", "INPUT.FORMAT", order)
        model = tiny_model(cfg).eval()
        pixels = sample["image"] if order == "RGB" else sample["image"].flip(0)
        images = model.preprocess_image([{"image": pixels}]).tensor
        results.append((model.pixel_mean.flatten().tolist(), model.backbone(images)["p2"]))
    assert results[0][0] == pytest.approx([123.675, 116.28, 103.53])
    assert results[1][0] == results[0][0][::-1]
    torch.testing.assert_close(results[0][1], results[1][1])
    cfg = timm_config(name, "MODEL.TIMM.OWN_NORMALIZATION", False)
    assert pixel_statistics(cfg) == (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen", "learning"),
    [
        ("convnext_atto", 1, ("stem",), ("stages.0", "stages.1")),
        ("convnext_atto", 2, ("stem", "stages.0"), ("stages.1",)),
        ("poolformer_s12", 2, ("stem", "stages.0"), ("stages.1",)),  # timm names no stem
        ("efficientnet_lite0", 1, ("conv_stem", "bn1"), ("blocks.0",)),
        ("efficientnet_lite0", 3, ("conv_stem", "blocks.0", "blocks.2"), ("blocks.3",)),
    ],
)
def test_freeze_at(name, freeze_at, frozen, learning):
    overrides = ("MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.TIMM.NORM", "BN")
    bottom_up = build(name, *overrides).bottom_up.train()
    for part in map(bottom_up.net.get_submodule, frozen):
        assert not trainable(part)
        norms = [x for x in part.modules() if isinstance(x, torch.nn.BatchNorm2d)]
        assert not any(norm.training for norm in norms)
    assert all(trainable(bottom_up.net.get_submodule(part)) for part in learning)


@pytest.mark.parametrize(
    ("norm", "statistics", "weights"),
    [("BN", True, True), ("EvalBN", False, True), ("FrozenBN", False, False)],
)
def test_norms(norm, statistics, weights):
    backbone = build("lcnet_050", "MODEL.TIMM.NORM", norm).eval().train()
    norms = [x for x in backbone.bottom_up.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    assert len(norms) > 20
    assert {x.training for x in norms} == {statistics}
    assert {x.weight.requires_grad for x in norms} == {weights}
    assert not any(x.training for x in backbone.eval().modules())


@pytest.mark.parametrize("name", ["hrnet_w18_small", "efficientnet_lite0"])
def test_unread_levels(name):
    cfg = timm_config(name, head="SOLOHead")
    read_levels(cfg, (3, 4))
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    model = step(cfg)
    assert without_gradient(model) == []
    assert list(model.backbone.bottom_up.output_shape())[-1] == "res4"
    assert model.backbone.size_divisibility == 32


def test_learning_rate_falls_from_block_to_block():
    overrides = ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 1.0, "MODEL.TIMM.LR_DECAY", 0.5)
    cfg = timm_config("convnext_atto", *overrides)
    rates = {name: group["lr"] for name, group in groups_of(cfg, tiny_model(cfg)).items()}
    prefix = "backbone.bottom_up.net.stages"
    assert rates["head.class_logits.weight"] == rates["backbone.fpn_lateral2.weight"] == 1.0
    assert rates[f"{prefix}.3.blocks.1.conv_dw.weight"] == 0.5
    assert rates[f"{prefix}.3.blocks.0.conv_dw.weight"] == 0.25
    assert rates["backbone.bottom_up.net.stem.0.weight"] == min(rates.values()) < 1e-3


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("", (), "MODEL.TIMM.NAME"),
        ("convnext_tinny", (), "convnext_tiny"),
        ("convnext_tiny.of_mine", (), "fb_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", (), "MODEL.TIMM.NAME"),
        ("vit_tiny_patch16_224", (), "strides"),
        ("hiera_tiny_224", (), "64x96 pixels"),
        ("resnet10t", ("MODEL.FPN.IN_FEATURES", ["res3", "res6"]), "MODEL.FPN.IN_FEATURES"),
        ("vgg11", ("MODEL.TIMM.DROP_PATH_RATE", 0.1), "MODEL.TIMM.DROP_PATH_RATE"),
        ("resnet10t", ("MODEL.TIMM.NORM", "GN"), "MODEL.TIMM.NORM"),
    ],
)
def test_refuses(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(timm_config(name, *overrides))


def test_unknown_blocks_learn_alike():
    cfg = timm_config("poolformer_s12", "MODEL.TIMM.LR_DECAY", 0.9, "SOLVER.OPTIMIZER", "AdamW")
    with pytest.raises(ConfigError, match="MODEL.TIMM.LR_DECAY"):
        Trainer.build_optimizer(cfg, tiny_model(cfg))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        *(("efficientnet_lite0", 0), ("resnet10t", 0), ("mobileone_s0", 0), ("fastvit_t8", 0)),
        ("ghostnet_050", 1),  # its stem is normalised and then used twice
        ("densenet121", 62),  # most norms see several convolutions
    ],
)
def test_norms_are_folded(name, left):
    backbone = build(name).eval().requires_grad_(False)
    norms = [x for x in backbone.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    for norm in norms:
        for values, least in ((norm.running_mean, -0.5), (norm.running_var, 0.5)):
            values.uniform_(least, least + 1)
    images = torch.rand(1, 3, 64, 96)
    expected = backbone(images)
    assert fuse_batch_norms(backbone) <= len(norms) - left
    kept = [x for x in backbone.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    assert len(kept) == left
    fused = pickle.loads(pickle.dumps(backbone)).to(memory_format=torch.channels_last)
    for key, feature in fused(images.contiguous(memory_format=torch.channels_last)).items():
        scale = expected[key].abs().max()
        torch.testing.assert_close(feature / scale, expected[key] / scale, rtol=0, atol=1e-4)


def test_every_key_is_read():
    def use(cfg):
        for cfg.SOLVER.OPTIMIZER in ("SGD", "AdamW"):
            Trainer.build_optimizer(cfg, tiny_model(cfg))

    assert unread(timm_config("convnext_atto"), ["TIMM"], use) == set()
