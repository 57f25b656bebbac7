"""MODEL.WEIGHTS from every source: what fits arrives whole, what doesn't is named."""

import logging
import pickle
from functools import partial

import pytest
import torch

from solo_d2.checkpoint.derive import derive_config
from solo_d2.checkpoint.formats import recognise
from tests.checkpoint import published

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.modeling import build_model  # noqa: E402

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.modeling.tiny import panoptic_config, tiny_config, tiny_model  # noqa: E402

MODELS = [(name, published.AUTHORS) for name in ("solo", "decoupled_light_dcn", "solov2_dcn")]
MODELS += [(name, published.MMDET) for name in ("decoupled", "solov2_light_448")]
SOURCES = {
    "adelaidet": (lambda: published.values(published.adelaidet()), "model"),
    **{
        f"{name} {'authors' if names is published.AUTHORS else 'mmdet'}": (
            partial(published.mm_state, name, names),
            "state_dict",
        )
        for name, names in MODELS
    },
}


def model_for(state):
    """The model that the weights ask for."""
    source = recognise(state)
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_GRIDS = published.GRIDS
    for settings in (derive_config(source.convert(state).state), source.settings):
        for key, value in settings.items():
            cfg.merge_from_list([key, value])
    torch.manual_seed(1)
    return build_model(cfg).eval()


@pytest.mark.parametrize("name", SOURCES)
def test_whole_models_arrive(name, tmp_path, caplog):
    make, key = SOURCES[name]
    state = make()
    torch.save({"meta": {"CLASSES": ("a",)}, key: state}, tmp_path / "weights.pth")
    model = model_for(state)
    with caplog.at_level(logging.WARNING):
        SOLOCheckpointer(model, whole=True).load(str(tmp_path / "weights.pth"))
    assert not [record for record in caplog.records if "goes with" in record.message]
    loaded = model.state_dict()
    origins = recognise(state).convert(state).origins
    assert set(origins) == set(loaded)
    for ours, theirs in origins.items():
        assert torch.equal(loaded[ours], state[theirs]), theirs
    with torch.no_grad():
        features = model.backbone(torch.rand(1, 3, 64, 64))
        outputs = model.head(features)
    assert all(logits.isfinite().all() for logits in outputs.class_logits)
    assert [logits.shape[-1] for logits in outputs.class_logits] == published.GRIDS


BACKBONES = {
    "torchvision.pth": (lambda: published.torchvision_resnet(50), {"fc.weight": (10, 256)}),
    "zoo.pkl": (lambda: published.detectron2_resnet(50), {"stem.fc.weight": (10, 256)}),
    "R-50.pkl": (lambda: published.caffe2_resnet(50), {}),
    "mask_rcnn.pkl": (
        lambda: published.detectron2_resnet(50, "backbone.bottom_up."),
        {"backbone.fpn_output2.bias": (32,), "roi_heads.mask_head.predictor.bias": (80,)},
    ),
    "mmdet_mask_rcnn.pth": (
        lambda: published.torchvision_resnet(50, "backbone."),
        {"rpn_head.rpn_cls.weight": (3, 256, 1, 1), "neck.fpn_convs.4.conv.bias": (256,)},
    ),
}


def write(path, shapes):
    """A file of the format of its name; returns the tensors."""
    state = published.values(shapes)
    if path.suffix == ".pkl":
        content = {name: value.numpy() for name, value in state.items()}
        if "conv1_w" not in content:
            content = {"model": content, "__author__": "x", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(state, path)
    return state


def resnet50():
    shapes = published.mm_model("solov2", published.MMDET)
    return model_for(published.values({k: v for part in shapes for k, v in part.items()}))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_arrive_and_the_rest_keeps_its_start(name, tmp_path):
    make, others = BACKBONES[name]
    state = write(tmp_path / name, make() | others)
    model = resnet50()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    SOLOCheckpointer(model).load(str(tmp_path / name))
    origins = recognise(state).convert(state).origins
    for key, value in model.state_dict().items():
        expected = state[origins[key]] if key in origins else before[key]
        if name == "R-50.pkl" and ".running_" in key:  # it has none: they are part of the affine
            expected = torch.full_like(value, float(key.endswith("var")))
        assert torch.equal(value, expected), key
    with pytest.raises(ConfigError, match=r"parameters of the model are not in them: .*head\."):
        SOLOCheckpointer(model, whole=True).load(str(tmp_path / name))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_of_another_depth_is_refused(name, tmp_path):
    deeper, others = BACKBONES[name][0](), {}
    for key, shape in deeper.items():
        for theirs, longer in (
            ("layer3.5.", "layer3.6."),
            ("res4.5.", "res4.6."),
            ("res4_5_", "res4_6_"),
        ):
            if theirs in key:
                others[key.replace(theirs, longer)] = shape
    write(tmp_path / name, deeper | others)
    with pytest.raises(ConfigError, match=r"of their parameters are not in the model: .*res4\.6\."):
        SOLOCheckpointer(resnet50()).load(str(tmp_path / name))
    fewer = {
        key: shape
        for key, shape in deeper.items()
        if not any(theirs in key for theirs in ("layer3.5.", "res4.5.", "res4_5_"))
    }
    write(tmp_path / name, fewer)
    with pytest.raises(ConfigError, match=r"parameters of the model are not in them: .*res4\.5\."):
        SOLOCheckpointer(resnet50()).load(str(tmp_path / name))


def test_counters_of_batch_norm_are_kept_and_never_missed(tmp_path, caplog):
    def model(norm):
        cfg = tiny_config()
        cfg.MODEL.SOLO.HEAD.NORM = norm
        return tiny_model(cfg)

    saved = model("BN").state_dict()
    counters = [name for name in saved if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        saved[name].fill_(7)
    with_counters, without = tmp_path / "with.pth", tmp_path / "without.pth"
    torch.save({"model": saved}, with_counters)
    torch.save({"model": {k: v for k, v in saved.items() if k not in counters}}, without)
    for file, expected in ((with_counters, 7), (without, 0)):
        for whole in (True, False):
            loaded = model("BN")
            checkpointer = SOLOCheckpointer(loaded, whole=whole)
            with caplog.at_level(logging.INFO):
                checkpointer.load(str(file))
            assert checkpointer.restarted == []
            assert {loaded.state_dict()[name].item() for name in counters} == {expected}
    assert "keep their start" not in caplog.text
    # A norm that does not count, such as a frozen one, has the same other names.
    torch.save({"model": model("GN").state_dict() | {k: saved[k] for k in counters}}, with_counters)
    SOLOCheckpointer(model("GN"), whole=True).load(str(with_counters))


def test_layout_of_the_first_version():
    """The names that checkpoints have had since the first version; they must go on loading."""
    names = {
        f"head.{layer}.{part}"
        for layer in ("class_logits", "kernel_params")
        for part in ("weight", "bias")
    }
    towers = [f"head.{tower}_tower.0" for tower in ("class", "kernel")]
    feature = [
        f"head.mask_feature.levels.{level}.{j}" for level in range(4) for j in range(max(level, 1))
    ]
    for conv in (*towers, *feature, "head.mask_feature.output"):
        names |= {f"{conv}.weight", f"{conv}.norm.weight", f"{conv}.norm.bias"}
    for n in range(2, 6):
        names |= {
            f"backbone.fpn_{kind}{n}.{part}"
            for kind in ("lateral", "output")
            for part in ("weight", "bias")
        }
    state = tiny_model().state_dict()
    assert {name for name in state if "bottom_up" not in name} == names
    assert "backbone.bottom_up.res2.0.conv1.norm.running_mean" in state


@pytest.fixture
def own(tmp_path):
    model = tiny_model()
    torch.save({"model": model.state_dict(), "iteration": 7}, tmp_path / "own.pth")
    return model, tmp_path / "own.pth"


def changed(**keys):
    cfg = tiny_config()
    for key, value in keys.items():
        cfg.merge_from_list([f"MODEL.SOLO.{key.replace('__', '.')}", value])
    torch.manual_seed(5)
    return build_model(cfg)


def test_classes_of_ones_own(own):
    """Other classes need one pattern, which the message gives; all else is loaded."""
    trained, file = own
    model = changed(NUM_CLASSES=3)
    with pytest.raises(
        ConfigError, match=r"for 5 classes, but the model has 3: .*NUM_CLASSES to 5"
    ):
        SOLOCheckpointer(model).load(str(file))
    with pytest.raises(ConfigError, match=r"""WEIGHTS_ALLOW "\['head\.class_logits\.\*'\]" """):
        SOLOCheckpointer(model).load(str(file))
    start = model.head.class_logits.weight.clone()
    SOLOCheckpointer(model, allow=["head.class_logits.*"]).load(str(file))
    assert torch.equal(model.head.class_logits.weight, start)
    for name, value in model.state_dict().items():
        if "class_logits" not in name:
            assert torch.equal(value, trained.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "message", "pattern"),
    [
        (
            {"MASK_FEATURE__OUT_CHANNELS": 64},
            r"head\.kernel_params\.weight \(32, 32, 3, 3\) instead of \(64, 32, 3, 3\)",
            ["head.kernel_params.*", "head.mask_feature.output.*"],
        ),
        ({"HEAD__NUM_CONVS": 2}, "6 parameters of the model are not in them", ["head.*_tower.1.*"]),
        (
            {"MASK_FEATURE__IN_FEATURES": ["p2", "p3"]},
            "of their parameters are not in",
            ["head.mask*"],
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(own, changes, message, pattern):
    model = changed(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        SOLOCheckpointer(model).load(str(own[1]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    SOLOCheckpointer(model, allow=pattern).load(str(own[1]))
    weight = model.state_dict()["head.class_tower.0.weight"]
    assert torch.equal(weight, own[0].state_dict()["head.class_tower.0.weight"])


def test_more_than_classes_is_not_called_classes(own):
    with pytest.raises(
        ConfigError, match=r"9 parameters have other shapes.*head\.class_logits\.\*"
    ):
        SOLOCheckpointer(changed(NUM_CLASSES=3, HEAD__CONV_DIM=64)).load(str(own[1]))


def test_a_panoptic_model_starts_from_an_instance_model(own):
    model = tiny_model(panoptic_config())
    with pytest.raises(ConfigError, match=r"WEIGHTS_ALLOW.*semantic_branch\.logits\.\*"):
        SOLOCheckpointer(model).load(str(own[1]))
    SOLOCheckpointer(model, allow=["semantic_branch.*"]).load(str(own[1]))


def test_training_goes_on_and_other_content_is_returned(own):
    model = changed(NUM_CLASSES=5)
    assert SOLOCheckpointer(model).load(str(own[1]))["iteration"] == 7
    checkpointer = SOLOCheckpointer(model, str(own[1].parent))
    checkpointer.save("again", iteration=8)
    assert checkpointer.resume_or_load("")["iteration"] == 8
    checkpointer.load("")


def test_settings_that_do_not_fit_the_source_are_told(tmp_path, caplog):
    state = published.values(published.adelaidet())
    torch.save({"model": state}, tmp_path / "weights.pth")
    model = resnet50()  # of mmdetection
    with caplog.at_level(logging.WARNING):
        SOLOCheckpointer(model).load(str(tmp_path / "weights.pth"))
    told = [record.message for record in caplog.records if "goes with" in record.message]
    for key in ("INPUT.FORMAT BGR", "PIXEL_MEAN", "PIXEL_STD", "STRIDE_IN_1X1 True"):
        assert any(key in message for message in told)


def test_unknown_names(tmp_path):
    torch.save({"encoder.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"no format that is known; theirs are encoder\.weight"):
        SOLOCheckpointer(tiny_model()).load(str(tmp_path / "other.pth"))
    with pytest.raises(ConfigError, match="none of their names is the end of a name"):
        SOLOCheckpointer(tiny_model()).load(f"{tmp_path}/other.pth?matching_heuristics=True")
    with pytest.raises(ConfigError, match="unknown options: heuristics"):
        SOLOCheckpointer(tiny_model()).load(f"{tmp_path}/other.pth?heuristics=True")


def test_shapes_matched_by_ends(tmp_path):
    torch.save({"res5.0.conv1.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"res5\.0\.conv1\.weight \(1,\) instead of \(512, "):
        SOLOCheckpointer(tiny_model()).load(f"{tmp_path}/other.pth?matching_heuristics=True")


def test_a_detector_goes_whole_into_its_own_kind(tmp_path):
    """A Mask R-CNN that is trained beside SOLO is more than a backbone to itself."""

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.ModuleDict({"bottom_up": torch.nn.Linear(2, 2)})
            self.roi_heads = torch.nn.Linear(2, 2)

    trained, model = Detector(), Detector()
    torch.save({"model": trained.state_dict()}, tmp_path / "weights.pth")
    SOLOCheckpointer(model, whole=True).load(str(tmp_path / "weights.pth"))
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())
