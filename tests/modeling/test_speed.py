"""Faster inference finds the same, faster training has the same losses; both compile whole."""

import copy
import pickle
import platform

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.profiler import ProfilerActivity, profile

from solo_d2.config import override
from solo_d2.config.check import check_config
from solo_d2.engine import Trainer, evaluate
from solo_d2.engine import trainer as trainer_module
from solo_d2.modeling import SOLO_HEAD_REGISTRY
from solo_d2.modeling.fusion import fuse_batch_norms
from solo_d2.modeling.layers import DeformConv2d, conv_norm_relu
from solo_d2.modeling.speed import (
    TRAINING_COMPILE,
    FastNetwork,
    SpeedOptions,
    speed_up,
    speed_up_training,
    training_options,
)
from solo_d2.ops import winograd
from solo_d2.utils.errors import ConfigError
from tests.config.test_configs import Recorder
from tests.export.models import small_model
from tests.modeling.test_backbones import levels_config, resnet_config, small
from tests.modeling.tiny import (
    assert_all_learn,
    image,
    losses_of,
    panoptic_config,
    tiny_config,
    tiny_model,
    with_sem_seg,
)

pytestmark = pytest.mark.detectron2


BATCH_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]


def trained(model):
    """Norms as a training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms_of(model):
        for name, low, high in (("running_var", 0.5, 2), ("running_mean", -1, 1)):
            getattr(norm, name).uniform_(low, high, generator=generator)
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return model.eval()


def with_batch_norms_everywhere():
    cfg = resnet_config(deform=("res5",), modulated=True)
    cfg.MODEL.SOLO.HEAD.NORM = cfg.MODEL.FPN.NORM = "BN"
    return cfg


@pytest.mark.parametrize(
    "make_config", [with_batch_norms_everywhere, lambda: small("regnet")], ids=["resnet", "regnet"]
)
def test_folded_norms_change_nothing(make_config):
    model = trained(tiny_model(make_config()))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 4 - 2
    number = len(norms_of(model))
    with torch.no_grad():
        expected = model.network(images).head
        assert fuse_batch_norms(model) == number > 10
        assert norms_of(model) == []
        found = model.network(images).head
    for name in ("class_logits", "kernel_params", "mask_features"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_norms_of_batch_statistics_stay():
    conv = DeformConv2d(3, 4, 3, modulated=False, norm=nn.BatchNorm2d(4, track_running_stats=False))
    assert fuse_batch_norms(conv) == 0
    assert conv.norm is not None


def assert_same(found, expected, *, score, pixels):
    """The same instances, but for the worst, and nearly the same scores and masks."""
    found, expected = (x[0]["instances"] for x in (found, expected))
    assert len(expected) > 20
    assert found.scores.dtype == torch.float32
    best = slice(0, 10)
    torch.testing.assert_close(found.scores[best], expected.scores[best], rtol=0, atol=score)
    same_class = found.pred_classes[:, None] == expected.pred_classes
    masks, others = (x.pred_masks.flatten(1).float() for x in (found, expected))
    differ = torch.cdist(masks, others, p=1) / masks.shape[1]
    assert float(torch.where(same_class, differ, 1).amin(dim=1).quantile(0.8)) <= pixels


@pytest.mark.parametrize(
    ("options", "score", "pixels"),
    [
        ({"channels_last": True}, 1e-5, 1e-3),
        ({"channels_last": True, "winograd": True}, 1e-5, 1e-3),
        ({"dtype": "bfloat16"}, 0.05, 0.05),
        ({"fuse_bn": True, "channels_last": True, "dtype": "bfloat16"}, 0.05, 0.05),
    ],
)
@pytest.mark.parametrize("make_config", [tiny_config, panoptic_config])
def test_finds_the_same(make_config, options, score, pixels):
    model = tiny_model(make_config(), sure=True).eval()
    expected = model([image()])
    assert speed_up(model, SpeedOptions(**options)) is model
    outputs = model.network(torch.rand(1, 3, 96, 128))
    assert not outputs.head.class_logits[0].requires_grad
    tensors = [*outputs.head.class_logits, *outputs.head.mask_features]
    tensors += [] if outputs.semantic_logits is None else [outputs.semantic_logits]
    assert all(x.dtype == torch.float32 for x in tensors)
    found = model([image()])
    assert_same(found, expected, score=score, pixels=pixels)
    assert found[0].keys() == expected[0].keys()


def test_half_precision_is_used(monkeypatch):
    model = small_model()
    seen = []
    model.backbone.register_forward_hook(lambda *args: seen.append(args[-1]["p2"].dtype))
    speed_up(model, SpeedOptions(dtype="bfloat16"))
    model([image()])
    assert seen == [torch.bfloat16]


@pytest.fixture
def counter(monkeypatch):
    """Compiles to what runs eagerly, and counts graphs."""
    from torch._dynamo.testing import CompileCounter

    counter, real = CompileCounter(), torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda *a, **k: real(*a, backend=counter, **k))
    yield counter
    torch.compiler.reset()


@pytest.mark.parametrize(
    "head", ["SOLOv2Head", pytest.param("DecoupledSOLOLightHead", marks=pytest.mark.reliability)]
)
def test_one_compiled_graph_serves_all_sizes(head, counter):
    model = small_model("MODEL.SOLO.HEAD.NAME", head)
    batches = [[image(96, 160)], [image(160, 128)], [image(128, 224)]]
    expected = [model(batch) for batch in batches]
    speed_up(model, SpeedOptions(compile="dynamic"))
    for batch, one in zip(batches, expected, strict=True):
        assert_same(model(batch), one, score=1e-4, pixels=1e-3)
    assert counter.frame_count == 1


def test_a_graph_for_each_size_and_not_for_many(counter):
    model = speed_up(small_model(), SpeedOptions(compile="static"))
    for size in ((96, 128), (128, 96), (96, 128)):
        model([image(*size)])
    assert counter.frame_count == 2
    with torch._dynamo.config.patch(cache_size_limit=2):
        with pytest.raises(ConfigError, match="more sizes of padded batches.*'dynamic'"):
            model([image(160, 160)])


def test_what_cannot_be_compiled_is_named(counter):
    model = small_model()
    head = model.head.forward

    def forward(features):
        assert float(features["p2"].sum()) == float(features["p2"].sum())
        print("a break")
        torch._dynamo.graph_break()
        return head(features)

    model.head.forward = forward
    speed_up(model, SpeedOptions(compile="dynamic"))
    with pytest.raises(ConfigError, match="TEST.SPEED.COMPILE is 'dynamic', but the network can't"):
        model([image()])


def test_a_fast_model_is_copied_and_pickled():
    model = speed_up(small_model(), SpeedOptions(channels_last=True, dtype="bfloat16"))
    expected = model([image()])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.network.model is twin
        assert_same(twin([image()]), expected, score=0, pixels=0)
        nn.init.zeros_(next(twin.backbone.parameters()))
    assert_same(model([image()]), expected, score=0, pixels=0)
    assert model.state_dict().keys() == small_model().state_dict().keys()


def test_without_options_nothing_changes():
    model = small_model()
    assert speed_up(model, SpeedOptions()) is model
    assert "network" not in vars(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_cuda_graphs_need_cuda():
    with pytest.raises(ConfigError, match="'cuda-graphs', but the model is on cpu"):
        speed_up(small_model(), SpeedOptions(compile="cuda-graphs"))


@pytest.mark.parametrize(
    ("device", "dtype", "channels_last"),
    [("cpu", "float32", True), ("cuda", "float32", False), ("cuda:1", "float16", True)],
)
@pytest.mark.parametrize("automatic", [None, "auto"])
def test_auto_depends_on_the_device(device, dtype, channels_last, automatic, monkeypatch):
    cfg = tiny_config()
    cfg.MODEL.DEVICE, cfg.TEST.SPEED.DTYPE = device, dtype
    keys = [f"TEST.SPEED.{key}" for key in ("FUSE_BN", "CHANNELS_LAST", "WINOGRAD")]
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    override(cfg, [x for key in keys for x in (key, automatic)])
    check_config(cfg, ["TEST.SPEED"], {})
    expected = SpeedOptions(True, channels_last, dtype, winograd=device == "cpu")
    assert SpeedOptions.from_config(cfg) == expected
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert not SpeedOptions.from_config(cfg).winograd
    for value in (True, False):
        for key in keys:
            override(cfg, [key, None])
            override(cfg, [key, str(value)])
        check_config(cfg, ["TEST.SPEED"], {})
        assert SpeedOptions.from_config(cfg) == SpeedOptions(value, value, dtype, winograd=value)


def test_what_was_chosen_is_logged(caplog):
    caplog.set_level("INFO", "solo_d2")
    speed_up(small_model(), SpeedOptions(fuse_bn=True))
    assert "TEST.SPEED: 0 BatchNorms folded, channels first, float32" in caplog.text
    speed_up(small_model(), SpeedOptions(winograd=True))
    assert "float32, Winograd convolutions" in caplog.text


def test_an_evaluation_alone_uses_them(monkeypatch, tmp_path):
    cfg = tiny_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": tiny_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    seen = set()
    dict.__setitem__(cfg.TEST, "SPEED", Recorder(cfg.TEST.SPEED, seen, "SPEED"))
    models = []

    def test(cls, cfg, model):
        models.append(model)
        return {}

    monkeypatch.setattr(trainer_module.Trainer, "test", classmethod(test))
    evaluate(cfg)
    assert isinstance(models[0].network, FastNetwork)
    assert norms_of(models[0]) == []
    keys = ("FUSE_BN", "CHANNELS_LAST", "WINOGRAD", "DTYPE", "COMPILE")
    assert seen == {f"SPEED.{key}" for key in keys}
    assert "network" not in vars(Trainer.build_model(cfg))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_graphs_find_the_same_again_and_again(dtype):
    cfg = tiny_config()
    cfg.MODEL.DEVICE = "cuda"
    model = tiny_model(cfg, sure=True).eval()
    batches = [[image(seed=seed)] for seed in range(4)]
    expected = [model(batch) for batch in batches]
    speed_up(model, SpeedOptions(compile="cuda-graphs", dtype=dtype))
    found = [model(batch) for batch in batches]  # kept over later runs
    score = 1e-4 if dtype == "float32" else 0.05
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, score=score, pixels=0.05)


@pytest.fixture
def eager(monkeypatch):
    """Compile in one piece or not at all, but for the backend that does nothing."""
    for settings in TRAINING_COMPILE.values():
        monkeypatch.setitem(settings, "fullgraph", True)
        monkeypatch.setitem(settings, "backend", "eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("head", [*(name for name, _ in SOLO_HEAD_REGISTRY), "panoptic"])
def test_compiles_without_a_break(head, eager):
    # Two of the ResNet's stages: all are alike.
    cfg = panoptic_config() if head == "panoptic" else levels_config((2, 3), (2, 3), head)
    model, batch = tiny_model(cfg), [with_sem_seg(image(seed=1))]
    expected, _ = losses_of(model, batch)
    if head == "SOLOv2Head":
        assert speed_up_training(model, channels_last=False, compile="dynamic") is model
    else:  # tracing the backbone, and sizes as symbols, once is enough
        part = model.semantic_branch if head == "panoptic" else model.head
        part.compile(**TRAINING_COMPILE["static"])
    losses, _ = losses_of(model, batch)
    torch.testing.assert_close(losses, expected)
    assert_all_learn(model, losses)


def test_copies_are_not_compiled_and_keys_stay():
    model = tiny_model(panoptic_config())
    keys = list(model.state_dict())
    speed_up_training(model, channels_last=True, compile="static")
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    for name in ("backbone", "head", "semantic_branch"):
        assert getattr(model, name)._compiled_call_impl is not None
        assert getattr(twin, name)._compiled_call_impl is None


def test_channels_last_gives_the_same_losses():
    model, batch = tiny_model(), [image(seed=1), image(seed=2)]
    outputs = []
    model.head.register_forward_hook(lambda module, args, output: outputs.append(output))
    results = []
    for channels_last in (False, True):
        speed_up_training(model, channels_last=channels_last, compile="")
        losses, _ = losses_of(model, batch)
        gradient = torch.autograd.grad(sum(losses.values()), model.head.kernel_params.weight)
        results.append((losses, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    layouts = [
        output.mask_features[0].is_contiguous(memory_format=torch.channels_last)
        for output in outputs
    ]
    assert layouts == [False, True]


def test_config_reaches_the_model():
    cfg = tiny_config()
    plain = Trainer.build_model(cfg)
    cfg.merge_from_list(["SOLVER.CHANNELS_LAST", True, "SOLVER.COMPILE", "dynamic"])
    fast = Trainer.build_model(cfg)
    for model, expected in ((plain, False), (fast, True)):
        weight = model.head.class_tower[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
        assert (model.backbone._compiled_call_impl is not None) == expected


def wide_model(**solver):
    """A model whose head takes Winograd's convolutions, on the first level."""
    cfg = tiny_config()
    cfg.MODEL.SOLO.HEAD.CONV_DIM = cfg.MODEL.FPN.OUT_CHANNELS = 128
    cfg.MODEL.SOLO.NUM_GRIDS = [24, *cfg.MODEL.SOLO.NUM_GRIDS[1:]]
    override(cfg, [x for key, value in solver.items() for x in (f"SOLVER.{key}", value)])
    torch.manual_seed(0)
    return cfg, Trainer.build_model(cfg)


@pytest.fixture
def convolved(monkeypatch):
    """Sizes of the inputs of Winograd's convolutions."""
    seen, real = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *x: seen.append(x[0].shape) or real(*x))
    return seen


def test_winograd_gives_the_same_losses_and_nearly_the_same_gradients(convolved, caplog):
    caplog.set_level("INFO", "solo_d2")
    batch, results = [image(seed=1), image(seed=2)], []
    for is_used in (False, True):
        _, model = wide_model(WINOGRAD=is_used)
        losses, _ = losses_of(model, batch)
        weights = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(sum(losses.values()), weights, materialize_grads=True)
        results.append((losses, gradients))
        assert bool(convolved) == ("SOLVER.WINOGRAD" in caplog.text) == is_used
    (expected, of_expected), (found, of_found) = results
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-4))
              for a, b in zip(of_found, of_expected, strict=True)]  # fmt: skip
    assert sorted(errors)[len(errors) // 2] < 1e-3
    assert max(errors) < 0.05  # an activation near 0 may fall on the other side of the ReLU
    convolved.clear()
    model.eval()([image()])
    assert not convolved  # TEST.SPEED is for inference


def test_winograd_is_left_after_an_error():
    _, model = wide_model(WINOGRAD=True)
    model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        losses_of(model, [image()])
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize(
    ("solver", "device", "is_used"),
    [
        ({}, "cpu", True),
        ({"WINOGRAD": "auto"}, "cpu", True),
        ({"WINOGRAD": False}, "cpu", False),
        ({"AMP.ENABLED": True}, "cpu", False),
        ({"COMPILE": "dynamic"}, "cpu", False),
        ({}, "cuda", False),
        ({"WINOGRAD": True}, "cuda", True),
    ],
)
def test_winograd_in_training_depends_on_model_and_device(solver, device, is_used, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    cfg, _ = wide_model(**solver)
    cfg.MODEL.DEVICE = device
    convs = {"in_channels": 128, "out_channels": 128, "kernel_size": 3}
    wide, narrow = nn.Conv2d(**convs), nn.Conv2d(**convs | {"out_channels": 8})
    assert training_options(cfg, nn.Sequential(wide))["winograd"] == is_used
    is_forced = solver.get("WINOGRAD") is True
    assert training_options(cfg, nn.Sequential(wide, narrow))["winograd"] == is_forced


def test_recomputed_norms_give_the_same_losses_and_gradients_in_less_memory():
    batch, results = [image(seed=1), image(seed=2)], []
    for is_used in (False, True):
        _, model = wide_model(RECOMPUTE=is_used, WINOGRAD=False)
        model = pickle.loads(pickle.dumps(model))
        weights = [p for p in model.parameters() if p.requires_grad]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
            losses, _ = losses_of(model, batch)
        total = sum(x.self_cpu_memory_usage for x in memory.key_averages())  # freed: negative
        gradients = torch.autograd.grad(sum(losses.values()), weights, materialize_grads=True)
        results.append((losses, gradients, total))
    (expected, of_expected, total), (found, of_found, reduced) = results
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(of_found, of_expected, rtol=1e-4, atol=1e-5)
    assert reduced < 0.8 * total


@pytest.mark.parametrize(
    ("solver", "norm", "device", "is_used"),
    [
        ({}, "GN", "cpu", True),
        ({}, "BN", "cpu", False),
        ({"COMPILE": "dynamic"}, "GN", "cpu", False),
        ({}, "GN", "cuda", False),
        ({"RECOMPUTE": True}, "GN", "cuda", True),
        ({"RECOMPUTE": False}, "GN", "cpu", False),
    ],
)
def test_recomputing_depends_on_model_and_device(solver, norm, device, is_used):
    cfg, _ = wide_model(**solver)
    cfg.MODEL.DEVICE = device
    wide = nn.Sequential(conv_norm_relu(128, 128, norm=norm))
    assert training_options(cfg, wide)["recompute"] == is_used
    narrow = nn.Sequential(conv_norm_relu(32, 32, norm=norm))
    assert training_options(cfg, narrow)["recompute"] == (solver.get("RECOMPUTE") is True)


@pytest.mark.parametrize("key", ["SOLVER.RECOMPUTE", "SOLVER.WINOGRAD", "TEST.SPEED.WINOGRAD"])
@pytest.mark.parametrize(("value", "compile"), [("yes", ""), (True, "dynamic")])
def test_what_compilation_excludes_is_named(key, value, compile):
    cfg = tiny_config()
    override(cfg, [key, value, f"{key.rpartition('.')[0]}.COMPILE", compile])
    with pytest.raises(ConfigError, match=f"{key} is"):
        read_speed_options(cfg)


def read_speed_options(cfg):
    SpeedOptions.from_config(cfg)
    training_options(cfg, nn.Sequential())
