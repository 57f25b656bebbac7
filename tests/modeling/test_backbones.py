"""Backbones: deformable ResNets on the CPU, transformers, what is frozen, and pretrained names."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.engine import Trainer
from solo_d2.modeling.backbones import layer_lr_factor
from solo_d2.modeling.backbones import pyramid as pyramid_module
from solo_d2.modeling.layers import DeformConv2d
from solo_d2.utils.errors import ConfigError
from tests.config.test_configs import unread
from tests.modeling.tiny import image, losses_of, tiny_config, tiny_model

pytestmark = pytest.mark.detectron2


RESNET = "build_solo_resnet_fpn_backbone"
NAMES = {
    "swin": "build_solo_swin_fpn_backbone",
    "vit": "build_solo_vit_backbone",
    "regnet": "build_solo_regnet_fpn_backbone",
}


def resnet_config(depth=18, *, deform=(), modulated=False, groups=1, head="SOLOv2Head"):
    cfg = tiny_config(head)
    cfg.MODEL.BACKBONE.NAME = RESNET
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH = depth
    resnets.DEFORM_ON_PER_STAGE = [f"res{stage}" in deform for stage in range(2, 6)]
    resnets.DEFORM_MODULATED = modulated
    if groups > 1:
        resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1 = groups, 2, False
    if depth > 34:
        resnets.RES2_OUT_CHANNELS = 64
    return cfg


def small(kind, **overrides):
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME = NAMES[kind]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    if kind == "swin":
        pytest.importorskip("timm")
        cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.NUM_HEADS = 12, [1, 2, 3, 4]
        cfg.MODEL.SWIN.DEPTHS = [2, 1, 1, 1]
        cfg.MODEL.FPN.IN_FEATURES = ["p0", "p1", "p2", "p3"]
    elif kind == "vit":
        pytest.importorskip("timm")
        vit = cfg.MODEL.VIT
        vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.GLOBAL_BLOCKS = 24, 3, 2, [2]
        cfg.MODEL.FPN.NORM = "LN"
    else:
        keys = cfg.MODEL.REGNET
        keys.STEM_WIDTH, keys.DEPTH, keys.GROUP_WIDTH = 8, 6, 8
        keys.W_0, keys.W_A, keys.W_M = 8, 12.0, 2.0
        cfg.MODEL.FPN.IN_FEATURES = ["s1", "s2", "s3", "s4"]
    cfg.merge_from_list([x for pair in overrides.items() for x in pair])
    return cfg


def build(cfg):
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3))


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def step(cfg):
    """A training step; returns the model with its gradients."""
    model = tiny_model(cfg)
    losses, _ = losses_of(model, [image(), image(num=2, seed=1)])
    sum(losses.values()).backward()
    return model


def without_gradient(model):
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]


@pytest.mark.parametrize("depth", [18, 50])
def test_plain_resnet_is_detectron2s(depth):
    cfg = resnet_config(depth)
    ours = build(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    theirs = build(cfg)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert trainable(ours) == trainable(theirs)
    assert ours.output_shape() == theirs.output_shape()
    assert ours.size_divisibility == theirs.size_divisibility
    x = torch.rand(1, 3, 64, 96)
    for name, feature in theirs(x).items():
        torch.testing.assert_close(ours(x)[name], feature, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("depth", "groups", "modulated"), [(18, 1, False), (50, 1, True), (50, 8, False)]
)
def test_deformable_starts_as_plain(depth, groups, modulated):
    stages = ("res3", "res4", "res5")
    settings = {"depth": depth, "groups": groups}
    plain = build(resnet_config(**settings))
    deform = build(resnet_config(**settings, deform=stages, modulated=modulated))
    missing, unexpected = deform.load_state_dict(plain.state_dict(), strict=False)
    layers = {n: m for n, m in deform.named_modules() if isinstance(m, DeformConv2d)}
    assert set(missing) == {f"{n}.offset.{p}" for n in layers for p in ("weight", "bias")}
    assert unexpected == []
    assert {name.split(".")[1] for name in layers} == set(stages)
    assert all(name.endswith(".conv2") for name in layers)
    for layer in layers.values():
        assert layer.offset.out_channels == (27 if modulated else 18)
        if modulated:  # every position counts half at first
            layer.weight.data *= 2
    x = torch.rand(1, 3, 32, 64)
    for name, feature in plain(x).items():
        torch.testing.assert_close(deform(x)[name], feature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "modulated"), [(18, True), (50, False)])
def test_deformable_trains(depth, modulated):
    cfg = resnet_config(depth, deform=("res3", "res4", "res5"), modulated=modulated)
    model = step(cfg)
    assert without_gradient(model) == []
    offsets = [m.offset for m in model.backbone.modules() if isinstance(m, DeformConv2d)]
    assert all(offset.weight.grad.abs().sum() > 0 for offset in offsets)
    Trainer.build_optimizer(cfg, model).step()
    assert all(offset.weight.abs().sum() > 0 for offset in offsets)
    with torch.no_grad():
        assert model.eval()([image()])[0]["instances"].pred_masks.shape[1:] == (96, 128)


def test_frozen_stages_freeze_their_offsets():
    cfg = resnet_config(deform=("res2", "res3"))
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build(cfg)
    assert not trainable(backbone.bottom_up.res2)
    assert {"0.conv2.offset.weight", "0.conv2.weight"} <= trainable(backbone.bottom_up.res3)


def levels_config(stages, levels, head="SOLOHead"):
    """A model that reads some levels of a pyramid on some stages of a ResNet."""
    cfg = resnet_config(head=head)
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = [f"res{i}" for i in stages]
    read_levels(cfg, levels)
    cfg.MODEL.SOLO.MASK_FEATURE.IN_FEATURES = [f"p{i}" for i in stages]
    return cfg


def read_levels(cfg, levels):
    solo, number = cfg.MODEL.SOLO, len(levels)
    solo.IN_FEATURES, solo.STRIDES = [f"p{i}" for i in levels], [min(2**i, 32) for i in levels]
    solo.NUM_GRIDS, solo.SCALE_RANGES = [12, 8, 6][:number], [[1, 512]] * number


@pytest.mark.parametrize(
    ("stages", "levels", "head", "laterals", "outputs"),
    [
        ((3, 4, 5), (3,), "SOLOHead", (3, 4, 5), (3,)),
        ((2, 3, 4, 5), (3, 6), "SOLOHead", (3, 4, 5), (3, 5)),  # p6 is max-pooled from p5
        ((2, 3, 4), (3, 4), "SOLOHead", (3, 4), (3, 4)),
        ((2, 3, 4), (3, 4), "SOLOv2Head", (2, 3, 4), (2, 3, 4)),  # the mask feature reads p2
    ],
)
def test_levels_that_nothing_reads_are_frozen(stages, levels, head, laterals, outputs):
    model = step(levels_config(stages, levels, head))
    assert without_gradient(model) == []
    names = {n.split(".")[0] for n in trainable(model.backbone) if n.startswith("fpn_")}
    expected = {f"fpn_lateral{i}" for i in laterals} | {f"fpn_output{i}" for i in outputs}
    assert names == expected
    assert list(model.backbone.output_shape()) == [f"p{i}" for i in (*stages, stages[-1] + 1)]
    assert model.backbone.size_divisibility == 2 ** stages[-1]


def test_models_of_others_keep_all_levels():
    cfg = levels_config((3, 4, 5), (3,))
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    assert {"fpn_output4.weight", "fpn_output5.weight"} <= trainable(build(cfg))


def assert_trains(cfg):
    """A step reaches all weights and moves the backbone, whose features then have their strides."""
    model = step(cfg)
    assert without_gradient(model) == []
    network = model.backbone.net if hasattr(model.backbone, "net") else model.backbone.bottom_up
    before = copy.deepcopy(network.state_dict())
    Trainer.build_optimizer(cfg, model).step()
    assert any(not torch.equal(value, before[name]) for name, value in network.named_parameters())
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    with torch.no_grad():
        padded = model.eval().preprocess_image([image(81, 100)]).tensor
        assert padded.shape[-2:] == (96, 128)
        for name, feature in model.backbone(padded).items():
            height, width = 96 // strides[name], 128 // strides[name]
            # A max-pooled level rounds up.
            assert feature.shape[1:] == (32, height + (96 % strides[name] > 0), width)


@pytest.mark.parametrize("kind", NAMES)
def test_other_backbones_train(kind):
    assert_trains(small(kind))


@pytest.mark.parametrize("kind", NAMES)
def test_unread_levels_of_other_backbones(kind):
    cfg = small(kind)
    cfg.MODEL.SOLO.HEAD.NAME = "SOLOHead"
    read_levels(cfg, (3, 4))
    assert without_gradient(step(cfg)) == []


@pytest.mark.parametrize(
    ("kind", "frozen", "learning"),
    [
        ("swin", ("bottom_up.patch_embed", "bottom_up.layers.0"), "bottom_up.layers.1"),
        ("vit", ("net.patch_embed", "net.blocks.0"), "net.blocks.1"),
        ("regnet", ("bottom_up.stem", "bottom_up.s1"), "bottom_up.s2"),
    ],
)
def test_freeze_at(kind, frozen, learning):
    backbone = build(small(kind, **{"MODEL.BACKBONE.FREEZE_AT": 2}))
    assert not any(trainable(backbone.get_submodule(name)) for name in frozen)
    assert trainable(backbone.get_submodule(learning))


@pytest.mark.parametrize(("kind", "most"), [("swin", 5), ("vit", 4), ("regnet", 5)])
def test_no_more_parts_than_there_are_can_be_frozen(kind, most):
    build(small(kind, **{"MODEL.BACKBONE.FREEZE_AT": most}))
    with pytest.raises(ConfigError, match=rf"FREEZE_AT is {most + 1}, .* at most {most}"):
        build(small(kind, **{"MODEL.BACKBONE.FREEZE_AT": most + 1}))


@pytest.mark.parametrize(
    ("kind", "prefix", "file"),
    [
        ("swin", "backbone.bottom_up.", "swin_tiny.pth"),
        ("vit", "backbone.net.", "mae_pretrain.pth"),
        ("regnet", "backbone.bottom_up.", "RegNetX.pyth"),
    ],
)
def test_pretrained_names(kind, prefix, file, tmp_path):
    """A file with the names of the authors' code reaches every weight that it has."""
    cfg = small(kind)
    model = tiny_model(cfg)
    state = {
        name.removeprefix(prefix): torch.rand_like(value)
        for name, value in model.state_dict().items()
        # The norms before the pyramid and ViTDet's relative positions are not in their files.
        if name.startswith(prefix) and not name.startswith(f"{prefix}norm")
        if value.is_floating_point() and "rel_pos" not in name
    }
    state |= {"norm.weight": torch.rand(96), "head.weight": torch.rand(1000, 96)}
    key, query = ("model_state", "") if kind == "regnet" else ("model", "?matching_heuristics=True")
    torch.save({key: state}, tmp_path / file)
    SOLOCheckpointer(model).load(f"{tmp_path / file}{query}")
    loaded = model.state_dict()
    for name, value in state.items():
        if not name.startswith(("norm.", "head.")):
            torch.testing.assert_close(loaded[prefix + name], value)


@pytest.mark.parametrize("kind", NAMES)
def test_every_key_is_read(kind):
    found = unread(small(kind), [kind.upper()], lambda cfg: layer_lr_factor(cfg, build(cfg)))
    assert found == set()


def groups_of(cfg, model):
    """The optimizer's options by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = Trainer.build_optimizer(cfg, model).param_groups
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_vit_learns_slower_from_block_to_block():
    cfg = small("vit", **{"SOLVER.OPTIMIZER": "AdamW", "SOLVER.BASE_LR": 1.0})
    cfg.MODEL.VIT.LR_DECAY = 0.5
    model = tiny_model(cfg)
    groups = groups_of(cfg, model)
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates["head.class_logits.weight"] == rates["backbone.simfp_2.0.weight"] == 1.0
    blocks = [rates[f"backbone.net.blocks.{i}.attn.qkv.weight"] for i in range(3)]
    assert blocks == [0.125, 0.25, 0.5]
    assert rates["backbone.net.pos_embed"] == 0.0625
    assert groups["backbone.net.pos_embed"]["weight_decay"] == 0
    assert groups["backbone.net.blocks.0.attn.qkv.weight"]["weight_decay"] > 0
    assert layer_lr_factor(resnet_config(), model) is None


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("resnet", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True]),
        ("deformable", "MODEL.RESNETS.DEFORM_NUM_GROUPS", 2),
        ("resnet", "MODEL.FPN.IN_FEATURES", ["res2", "res6"]),
        ("resnet", "MODEL.FPN.IN_FEATURES", ["res2", "res4"]),
        ("swin", "MODEL.SWIN.DEPTHS", [1, 1]),
        ("swin", "MODEL.SWIN.NUM_HEADS", [5, 1, 1, 1]),
        ("swin", "MODEL.FPN.IN_FEATURES", ["p0", "p1"]),
        ("vit", "MODEL.FPN.NORM", ""),
        ("vit", "MODEL.VIT.NUM_HEADS", 5),
        ("vit", "MODEL.VIT.GLOBAL_BLOCKS", [3]),
        ("regnet", "MODEL.FPN.IN_FEATURES", ["res2"]),
        ("regnet", "MODEL.FPN.IN_FEATURES", ["s1", "s2", "s3"]),
        ("regnet", "MODEL.REGNET.W_M", 0.5),
    ],
)
def test_refuses(kind, key, value):
    cfg = small(kind) if kind in NAMES else resnet_config(deform=("res3",) * (kind != "resnet"))
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=key.rpartition(".")[0]):
        build(cfg)


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_missing_timm_is_named(kind, monkeypatch):
    monkeypatch.setattr(pyramid_module.importlib.util, "find_spec", lambda name: None)
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME = NAMES[kind]
    with pytest.raises(ConfigError, match="pip install timm"):
        build(cfg)


def test_deform_conv_keeps_stride_and_dilation():
    cfg = resnet_config(50, deform=("res4", "res5"))
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    resnet = build(cfg).bottom_up
    assert resnet.res4[0].conv2.stride == resnet.res4[0].conv2.offset.stride == (2, 2)
    assert resnet.res5[0].conv2.dilation == resnet.res5[0].conv2.offset.dilation == (2, 2)
    assert isinstance(resnet.res3[0].conv2, nn.Conv2d)
    feature = resnet(torch.rand(1, 3, 64, 64))["res5"]
    assert feature.shape[-2:] == (4, 4)
