"""MODEL.WEIGHTS from every source: what fits arrives whole, what doesn't is named."""

import copy
import os
import pickle
import re

import pytest
import torch
from detectron2.modeling import build_model

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.derive import derive_config
from solo_d2.checkpoint.formats import (
    CAFFE2,
    DETECTOR,
    MMDETECTION_DETECTOR,
    RESNET,
    TORCHVISION,
    recognise,
)
from solo_d2.checkpoint.saved_config import warn_of_other_settings
from solo_d2.utils.errors import ConfigError
from tests.checkpoint import published
from tests.modeling.tiny import panoptic_config, tiny_config, tiny_model

# Of the authors' models test_conversion loads the others; those of mmdetection are the same
# (test_formats).
SOURCES = {
    "adelaidet": published.adelaidet,
    "solov2": lambda: published.authors("solov2"),
    "mmdet_decoupled_light": lambda: published.newer(published.authors("decoupled_light")),
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
    state = SOURCES[name]()
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": state}, tmp_path / "weights.pth")
    model = model_for(state)
    SOLOCheckpointer(model, whole=True).load(str(tmp_path / "weights.pth"))
    assert "goes with" not in caplog.text
    loaded = model.state_dict()
    origins = recognise(state).convert(state).origins
    assert set(origins) == set(loaded)
    for ours, theirs in origins.items():
        assert torch.equal(loaded[ours], state[theirs]), theirs
    with torch.no_grad():
        outputs = model.head(model.backbone(torch.rand(1, 3, 64, 64)))
    assert [logits.shape[-1] for logits in outputs.class_logits] == published.GRIDS


BACKBONES = {
    "torchvision.pth": (
        TORCHVISION, published.torchvision_resnet(50), {"fc.weight": (10, 256)},
    ),
    "zoo.pkl": (RESNET, published.detectron2_resnet(50), {"stem.fc.weight": (10, 256)}),
    "R-50.pkl": (CAFFE2, published.caffe2_resnet(50), {}),
    "mask_rcnn.pkl": (
        DETECTOR,
        published.detectron2_resnet(50, "backbone.bottom_up."),
        {"backbone.fpn_output2.bias": (32,), "roi_heads.mask_head.predictor.bias": (80,)},
    ),
    "mmdet_mask_rcnn.pth": (
        MMDETECTION_DETECTOR,
        published.torchvision_resnet(50, "backbone."),
        {"rpn_head.rpn_cls.weight": (3, 256, 1, 1), "neck.fpn_convs.4.conv.bias": (256,)},
    ),
}  # fmt: skip


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


@pytest.fixture(scope="module")
def resnet50():
    """A model of mmdetection's settings."""
    return model_for(published.newer(published.authors("solov2")))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_arrive_and_the_rest_keeps_its_start(name, resnet50, tmp_path):
    source, shapes, others = BACKBONES[name]
    state = write(tmp_path / name, shapes | others)
    assert recognise(state) is source
    before = {key: value.clone() for key, value in resnet50.state_dict().items()}
    SOLOCheckpointer(resnet50).load(str(tmp_path / name))
    origins = source.convert(state).origins
    for key, value in resnet50.state_dict().items():
        expected = state[origins[key]] if key in origins else before[key]
        if source is CAFFE2 and ".running_" in key:  # it has none: they are part of the affine
            expected = torch.full_like(value, float(key.endswith("var")))
        assert torch.equal(value, expected), key
    with pytest.raises(ConfigError, match=r"not in them: .*fpn_"):
        SOLOCheckpointer(resnet50, whole=True).load(str(tmp_path / name))
    # Nor does one of another depth fit.
    last = re.compile(r"(layer3\.|res4[._])5")
    longer = {last.sub(r"\g<1>6", key): shape for key, shape in shapes.items()}
    shorter = {key: shape for key, shape in shapes.items() if not last.search(key)}
    for other, named in ((shapes | longer, r"in the model: .*res4\.6\."),
        (shorter, r"in them: .*res4\.5\.")):  # fmt: skip
        write(tmp_path / name, other)
        with pytest.raises(ConfigError, match=named):
            SOLOCheckpointer(resnet50).load(str(tmp_path / name))


def test_counters_of_batch_norm_are_kept_and_never_missed(tmp_path):
    start, file = changed(HEAD__NORM="BN"), tmp_path / "a.pth"
    saved = copy.deepcopy(start.state_dict())
    counters = [name for name in saved if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        saved[name].fill_(7)
    uncounted = {name: value for name, value in saved.items() if name not in counters}
    for state, expected in ((saved, 7), (uncounted, 0)):
        torch.save({"model": state}, file)
        for whole in (True, False):
            checkpointer = SOLOCheckpointer(copy.deepcopy(start), whole=whole)
            checkpointer.load(str(file))
            assert checkpointer.restarted == []
            loaded = checkpointer.model.state_dict()
            assert {loaded[name].item() for name in counters} == {expected}
    # A norm that does not count, such as a frozen one, has the same other names.
    model = tiny_model()
    torch.save({"model": model.state_dict() | {k: saved[k] for k in counters}}, file)
    SOLOCheckpointer(model, whole=True).load(str(file))


def test_layout_of_the_first_version():
    """The names that checkpoints have had since the first version; they must go on loading."""
    convs = ["head.class_logits", "head.kernel_params"]
    convs += [f"backbone.fpn_{kind}{n}" for kind in ("lateral", "output") for n in range(2, 6)]
    names = {f"{conv}.{part}" for conv in convs for part in ("weight", "bias")}
    levels = [f"levels.{level}.{j}" for level in range(4) for j in range(max(level, 1))]
    normed = [f"head.mask_feature.{name}" for name in (*levels, "output")]
    for conv in ("head.class_tower.0", "head.kernel_tower.0", *normed):
        names |= {f"{conv}.weight", f"{conv}.norm.weight", f"{conv}.norm.bias"}
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
    for part in (
        r"5 classes, .*has 3: .*NUM_CLASSES to 5",
        r"ALLOW \"\['head\.class_logits\.\*'\]\"",
    ):
        with pytest.raises(ConfigError, match=part):
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
        ({"HEAD__NUM_CONVS": 2}, "6 parameters of the model", ["head.*_tower.1.*"]),
        ({"MASK_FEATURE__IN_FEATURES": ["p2", "p3"]}, "of their parameters", ["head.mask*"]),
        (
            {"NUM_CLASSES": 3, "HEAD__CONV_DIM": 64},  # is not said to be other classes alone
            r"9 parameters.*head\.class_logits\.\*",
            ["head.*_tower.*", "head.*_logits.*", "head.*_params.*"],
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
    for name in ("backbone.fpn_output2.weight", "backbone.bottom_up.stem.conv1.weight"):
        assert torch.equal(model.state_dict()[name], own[0].state_dict()[name])


def test_a_panoptic_model_starts_from_an_instance_model(own):
    model = tiny_model(panoptic_config())
    with pytest.raises(ConfigError, match=r"WEIGHTS_ALLOW.*semantic_branch\.logits\.\*"):
        SOLOCheckpointer(model).load(str(own[1]))
    with pytest.raises(ConfigError) as caught:  # inference does not read MODEL.WEIGHTS_ALLOW
        SOLOCheckpointer(model, whole=True).load(str(own[1]))
    assert "WEIGHTS_ALLOW" not in str(caught.value)
    SOLOCheckpointer(model, allow=["semantic_branch.*"]).load(str(own[1]))


def test_the_instances_of_a_panoptic_model_need_no_branch_for_stuff(tmp_path):
    panoptic, model = tiny_model(panoptic_config()), tiny_model(tiny_config())
    torch.nn.init.ones_(panoptic.head.class_logits.bias)
    torch.save({"model": panoptic.state_dict()}, tmp_path / "panoptic.pth")
    SOLOCheckpointer(model, whole=True).load(str(tmp_path / "panoptic.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, panoptic.state_dict()[name]), name


def test_training_goes_on_and_other_content_is_returned(own):
    checkpointer = SOLOCheckpointer(changed(), str(own[1].parent))
    assert checkpointer.load(str(own[1]))["iteration"] == 7
    checkpointer.save("again", iteration=8)
    assert checkpointer.resume_or_load("")["iteration"] == 8
    checkpointer.load("")


@pytest.mark.parametrize("name", ["config.yaml", "weights.yaml"])
def test_settings_that_differ_from_the_config_beside_the_weights_are_told(name, tmp_path, caplog):
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    warn_of_other_settings(cfg)  # no config
    (tmp_path / name).write_text(cfg.dump())
    cfg.MODEL.SOLO.SCORE_THRESH_TEST = 0.2
    warn_of_other_settings(cfg)  # not a setting of the weights
    assert not caplog.records
    cfg.MODEL.SOLO.NUM_GRIDS, cfg.INPUT.FORMAT = [9, 8, 6, 4, 2], "RGB"
    warn_of_other_settings(cfg)
    (record,) = caplog.records
    for text in (name, "NUM_GRIDS", "[9, 8, 6, 4, 2]", "INPUT.FORMAT 'BGR' -> 'RGB'"):
        assert text in record.getMessage()


def test_settings_that_do_not_fit_the_source_are_told(resnet50, tmp_path, caplog):
    torch.save({"model": published.adelaidet()}, tmp_path / "weights.pth")
    SOLOCheckpointer(resnet50).load(str(tmp_path / "weights.pth"))
    told = [record.message for record in caplog.records if "goes with" in record.message]
    for key in ("INPUT.FORMAT BGR", "PIXEL_MEAN", "PIXEL_STD", "STRIDE_IN_1X1 True"):
        assert any(key in message for message in told)


@pytest.mark.parametrize("name", ["cut.pth", "cut.pkl", "empty.pth", "text.pth", "gone.pth"])
def test_files_that_are_no_checkpoint_are_named_on_one_line(tmp_path, name):
    file = tmp_path / name
    if name.startswith("cut"):
        write(file, published.batch_norm("bn", 1000))
        os.truncate(file, file.stat().st_size // 2)
    elif name != "gone.pth":
        file.write_text("no checkpoint" * (name == "text.pth"))
    checkpointer = SOLOCheckpointer(torch.nn.Linear(1, 1))
    for _ in range(2):  # a failure leaves nothing behind
        with pytest.raises(ConfigError, match=re.escape(str(file))) as error:
            checkpointer.load(str(file))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "query", "message"),
    [
        ("encoder.weight", "", r"no known format.*encoder\.weight"),
        ("encoder.weight", "?matching_heuristics=True", "end of a name"),
        ("encoder.weight", "?heuristics=True", "unknown options: heuristics"),
        ("res5.0.conv1.weight", "?matching_heuristics=True", r"conv1\.weight \(1,\) instead of"),
    ],
)
def test_unknown_names(tmp_path, name, query, message):
    torch.save({name: torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=message):
        SOLOCheckpointer(tiny_model()).load(f"{tmp_path}/other.pth{query}")


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
