"""tools/convert_weights.py: from any source to a checkpoint and a config that belong together."""

import re

import pytest
import torch
from detectron2.modeling import build_model

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.convert import plan_conversion, write_conversion
from solo_d2.checkpoint.derive import class_names, derive_config, settings_in_text
from solo_d2.config import load_config
from solo_d2.data.classes import dataset_categories, make_categories
from solo_d2.utils.errors import ConfigError
from tests.checkpoint import published
from tests.modeling.tiny import tiny_config, tiny_model
from tools.convert_weights import main

TEXT = """
model = dict(bbox_head=dict(num_grids=[20, 18, 12, 8, 6],
    scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)), sigma=0.2))
"""


def save(path, state, **others):
    torch.save({"state_dict": state, **others}, path)
    return path


def load(config, *overrides):
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu", *overrides])
    model = build_model(cfg)
    SOLOCheckpointer(model, whole=True, allow=cfg.MODEL.WEIGHTS_ALLOW).load(cfg.MODEL.WEIGHTS)
    return cfg, model


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


# Structure and inputs of each model by config key; and the config that its schedule comes from.
RANGES_512 = [[1, 64], [32, 128], [64, 256], [128, 512], [256, 2048]]
EXPECTED = {
    "solo": ("solo_R50_3x", {"HEAD.NAME": "SOLOHead", "CELL_CONFLICT": "last"}),
    "decoupled": ("decoupled_solo_R50_3x", {"HEAD.NAME": "DecoupledSOLOHead"}),
    "decoupled_light_dcn": (
        "decoupled_solo_light_512_R50_dcn_3x",
        {"HEAD.DEFORM": "v1", "HEAD.NUM_DEFORM_CONVS": 1, "SCALE_RANGES": RANGES_512},
    ),
    "solov2_dcn": (
        "solov2_R101_dcn_3x",
        {"HEAD.DEFORM": "v2", "HEAD.NUM_DEFORM_CONVS": 4, "MASK_FEATURE.DEFORM": "v2"},
    ),
    "solov2_light_448": ("solov2_light_448_R18_3x", {"HEAD.NUM_CONVS": 2}),
    "solov2_light_512_dcn": ("solov2_light_512_R50_dcn_3x", {"SCALE_RANGES": RANGES_512}),
}


@pytest.mark.parametrize("model", EXPECTED)
def test_round_trip(model, tmp_path):
    """Convert, load by the written config: the model has the source's weights."""
    base, expected = EXPECTED[model]
    state = published.authors(model)
    source = save(tmp_path / "source.pth", state)
    plan = plan_conversion(source)
    assert plan.base.stem == base
    config = write_conversion(plan, tmp_path / "converted.pth")
    cfg, converted = load(config)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.RESNETS.DEFORM_MODULATED == (model == "solov2_dcn")
    assert cfg.MODEL.SOLO.NUM_CLASSES == 80
    assert cfg.DATASETS.TEST == ("coco_2017_val",)
    for key, value in expected.items():
        assert value_of(cfg.MODEL.SOLO, key) == value
    written = torch.load(tmp_path / "converted.pth", weights_only=True)
    assert list(written) == ["model", "classes"]
    assert written["classes"] == dataset_categories("coco_2017_val")
    for name, value in converted.state_dict().items():
        assert torch.equal(value, state[plan.conversion.origins[name]])


def test_command_reports_what_it_did(tmp_path, capsys):
    torch.save({"model": published.adelaidet()}, tmp_path / "SOLOv2_R50_3x.pth")
    assert main([str(tmp_path / name) for name in ("SOLOv2_R50_3x.pth", "solov2.pth")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "format: SOLOv2 of AdelaiDet",
        "mapped: 333 parameters, 52 of them renamed",
        *("ignored: nothing", "missing: nothing", "left over: nothing", "solov2_R50_3x.yaml"),
        "taken from that config: NUM_GRIDS, SCALE_RANGES",
    ):
        assert line in printed
    cfg, _ = load(tmp_path / "solov2.yaml")
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD) == ("BGR", [1.0, 1.0, 1.0])
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is True
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"SOLOv2_R50_3x.pth", "solov2.pth", "solov2.yaml"}


def test_what_is_saved_beside_the_weights(tmp_path, capsys):
    meta = {"CLASSES": [f"thing {i}" for i in range(80)], "config": TEXT}
    state = published.authors("solov2_light_512_dcn")
    source = save(tmp_path / "source.pth", state, meta=meta)
    assert main([str(source), str(tmp_path / "out.pth")]) == 0
    assert "classes: thing 0, thing 1" in capsys.readouterr().out
    cfg = load_config(str(tmp_path / "out.yaml"))
    assert cfg.MODEL.SOLO.NUM_GRIDS == [20, 18, 12, 8, 6]
    assert cfg.MODEL.SOLO.SCALE_RANGES[4] == [256, 2048]
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), ())  # not COCO's classes
    assert cfg.MODEL.CLASSES == make_categories(meta["CLASSES"], range(1, 81))
    assert torch.load(tmp_path / "out.pth", weights_only=True)["classes"] == cfg.MODEL.CLASSES
    coco = dataset_categories("coco_2017_val")
    for meta in ({"dataset_meta": {"classes": tuple(x["name"] for x in coco)}}, None):
        plan = plan_conversion(save(source, state, meta=meta))
        assert plan.classes == coco
        assert "DATASETS.TEST" not in plan.settings


@pytest.mark.parametrize(
    "meta",
    [None, "text", {"CLASSES": [1, 2]}, {"dataset_meta": 3}, {"config": "num_grids=[,"}],
)
def test_nothing_odd_beside_the_weights_matters(meta):
    assert class_names({"meta": meta}) == []
    assert settings_in_text({"meta": meta}) == {}


def test_backbones_are_converted_too(tmp_path):
    state = published.values(published.torchvision_resnet(50))
    torch.save(state, tmp_path / "r.pth")
    config = write_conversion(plan_conversion(tmp_path / "r.pth"), tmp_path / "c.pth")
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu", "MODEL.SOLO.NUM_CLASSES", 2])
    model = build_model(cfg)
    SOLOCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    weight = model.backbone.bottom_up.res4[5].conv3.weight
    assert torch.equal(weight, state["layer3.5.conv3.weight"])
    assert cfg.INPUT.FORMAT == "RGB"


def test_config_of_ones_choice_and_parameters_that_may_differ(tmp_path):
    state = published.authors("solov2")
    del state["bbox_head.solo_kernel.bias"]
    source = save(tmp_path / "a.pth", state | {"extra.weight": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"not in them: head\.kernel_params\.bias"):
        plan_conversion(source)
    allow = ["head.kernel_params.bias", "extra.*"]
    plan = plan_conversion(source, "configs/coco/solov2_R50_1x.yaml", allow=allow)
    assert plan.base.stem == "solov2_R50_1x"
    report = "\n".join(plan.report())
    assert "missing: 1: head.kernel_params.bias" in report
    assert "left over: 1: extra.weight" in report
    load(write_conversion(plan, tmp_path / "b.pth"))


# Changes of SOLO's weights, and what is said of them.
REFUSED = {
    "none of SOLO": (lambda _: {"encoder.weight": torch.ones(1)}, "format is unknown"),
    "no stage 3": (lambda state: without("layer3", state), "no ResNet"),
    "no masks": (lambda state: without("ins_list", state), "SOLO head"),
    "another shape": (
        lambda state: state | {"bbox_head.solo_cate.weight": torch.ones(80, 16, 3, 3)},
        r"head\.class_logits\.weight \(80, 16, 3, 3\) instead of",
    ),
}


def without(part, state):
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_writes_nothing(case, tmp_path, capsys):
    change, message = REFUSED[case]
    source = save(tmp_path / "source.pth", change(published.authors("solo")))
    assert main([str(source), str(tmp_path / "out.pth")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"convert_weights: {source}")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


def test_places_that_can_not_be(tmp_path, capsys):
    assert main([str(tmp_path / "gone.pth"), str(tmp_path / "out.pth")]) == 2
    assert "gone.pth" in capsys.readouterr().err
    source = save(tmp_path / "source.pth", published.authors("solov2"))
    plan = plan_conversion(source, "configs/coco/solov2_R50_3x.yaml")
    for name in ("mine.yaml", "file"):
        (tmp_path / name).write_text("# my own\n")
    for output, message in (
        ("out.pt", r"\.pth"),
        ("mine.pth", r"mine\.yaml already exists"),
        ("file/out.pth", "can't be written"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_conversion(plan, tmp_path / output)
    assert {path.name for path in tmp_path.iterdir()} == {"source.pth", "mine.yaml", "file"}


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("SOLOv2Head", {"HEAD.KERNEL_SIZE": 3, "HEAD.KERNEL_COORDS": False}),
        ("SOLOv2Head", {"MASK_FEATURE.TYPE": "separate", "MASK_FEATURE.NUM_CONVS": 2}),
        ("SOLOv2Head", {"MASK_FEATURE.COORDS": False, "MASK_FEATURE.IN_FEATURES": ["p2", "p3"]}),
        ("SOLOHead", {"HEAD.NUM_CONVS": 3, "HEAD.NUM_COORD_CONVS": 2, "HEAD.NORM": "BN"}),
        ("DecoupledSOLOHead", {"HEAD.NUM_COORD_CONVS": 0, "NUM_GRIDS": [9, 8, 6, 5, 4]}),
        ("DecoupledSOLOLightHead", {"HEAD.NORM": "", "HEAD.DEFORM": "v2"}),
    ],
)
def test_variants_of_the_head_are_read_off_the_shapes(head, changes):
    cfg = tiny_config(head)
    changes = {f"MODEL.SOLO.{key}": value for key, value in changes.items()}
    for key, value in changes.items():
        cfg.merge_from_list([key, value])
    derived = derive_config(tiny_model(cfg).state_dict())
    assert derived["MODEL.SOLO.HEAD.NAME"] == head
    assert derived == {key: value_of(cfg, key) for key in derived}
    assert derived.keys() >= changes.keys()
