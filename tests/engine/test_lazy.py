"""Lazy configs: the same model and training as the YAML says, and the trainer's features."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec

from solo_d2.config import load_config
from solo_d2.data import SOLODatasetMapper, register_coco_format
from solo_d2.engine import Trainer
from solo_d2.engine.lazy import LazyTrainer, trainer_config
from solo_d2.utils.errors import BadNumbersError, ConfigError, DatasetError
from tools import lazyconfig_train_net, replay_step

FILE = "configs/lazy/solov2_R50_1x.py"


@pytest.fixture
def lazy():
    return LazyConfig.load(FILE)


@pytest.fixture
def cfg():
    cfg = load_config("configs/coco/solov2_R50_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SOLO.NUM_CLASSES = 80
    return cfg


def plain(value):
    """A setting as something that can be compared."""
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if hasattr(value, "keywords"):
        return value.func, plain(value.keywords)
    if hasattr(value, "items"):
        return {key: plain(item) for key, item in value.items()}
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return [plain(item) for item in value]
    return value


def test_model_is_that_of_the_yaml(lazy, cfg):
    built = LazyTrainer.build_model(SimpleNamespace(lazy=lazy), cfg)
    expected = Trainer.build_model(cfg)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (built, expected)]
    assert shapes[0] == shapes[1]
    trained = [{k for k, v in m.named_parameters() if v.requires_grad} for m in (built, expected)]
    assert trained[0] == trained[1]
    hooks = [len(m.head._forward_pre_hooks) for m in (built, expected)]  # Winograd's convolutions
    assert hooks[0] == hooks[1]
    for key in (
        *("num_classes", "scale_ranges", "center_scale", "cell_conflict", "mask_target"),
        *("input_format", "loss_params", "decoder_params"),
    ):
        ours, theirs = plain(getattr(built, key)), plain(getattr(expected, key))
        assert ours == theirs, key


def test_training_is_that_of_the_yaml(lazy, cfg):
    made = trainer_config(lazy)
    for key in ("MAX_ITER", "IMS_PER_BATCH", "CHECKPOINT_PERIOD", "ACCUMULATE_STEPS"):
        assert made.SOLVER[key] == cfg.SOLVER[key], key
    assert made.TEST.EVAL_PERIOD == cfg.TEST.EVAL_PERIOD
    assert made.MODEL.WEIGHTS == cfg.MODEL.WEIGHTS
    assert made.MODEL.META_ARCHITECTURE == cfg.MODEL.META_ARCHITECTURE
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = Trainer.build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=1.0))
    multiplier = instantiate(lazy.lr_multiplier)
    for iteration in (0, 500, 1000, 59_999, 60_001, 79_999, 80_001, 89_999):
        where = iteration / 90_000
        assert multiplier(where) == pytest.approx(schedule._multiplier(where)), iteration
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.GroupNorm(1, 1))
    expected = Trainer.build_optimizer(cfg, model)
    lazy.optimizer.params.model = model
    groups = [
        [{k: v for k, v in group.items() if k not in ("params", "foreach")} for group in groups]
        for groups in (instantiate(lazy.optimizer).param_groups, expected.param_groups)
    ]
    assert groups[0] == groups[1]
    for is_train, loader in ((True, lazy.dataloader.train), (False, lazy.dataloader.test)):
        mappers = (instantiate(loader.mapper), SOLODatasetMapper(cfg, is_train=is_train))
        ours, theirs = (mapper.augmentations.augs for mapper in mappers)
        assert [type(x) for x in ours] == [type(x) for x in theirs]
        for shape in ((480, 640, 3), (400, 2000, 3)):
            resizes = [x[0].get_transform(np.zeros(shape)) for x in (ours, theirs)]
            assert resizes[0].new_w == resizes[1].new_w
            assert resizes[0].new_h == resizes[1].new_h


def make_tiny(lazy, shapes, output):
    for split, part in (("train", "train"), ("test", "val")):
        name, json_file = f"lazy_{part}", f"{shapes}/annotations/instances_{part}.json"
        register_coco_format(name, json_file, f"{shapes}/{part}")
        lazy.dataloader[split].dataset.names = name
        lazy.dataloader[split].num_workers = 0
        lazy.dataloader[split].mapper.augmentations[0].short_edge_length = 48
    backbone, levels = lazy.model.backbone, lazy.model.head.input_shape
    backbone.bottom_up.stages.pop("stride_in_1x1")  # bottlenecks alone have it
    for name in lazy.model.head.in_features:
        levels[name] = ShapeSpec(channels=32, stride=levels[name].stride)
    return LazyConfig.apply_overrides(
        lazy,
        [
            *("model.backbone.bottom_up.stages.depth=18", "model.backbone.out_channels=32"),
            *("model.num_classes=7", "model.head.num_convs=1", "model.head.conv_dim=32"),
            *("model.head.num_grids=[10,8,6,5,4]", "model.head.mask_conv_dim=32"),
            "model.head.mask_out_channels=32",
            *("train.max_iter=2", "train.device=cpu", "train.init_checkpoint=''"),
            *("train.ema.enabled=True", "train.accumulate_steps=2", "train.amp.enabled=True"),
            *("train.amp.dtype=bfloat16", "train.clip_full_model.enabled=True"),
            *("dataloader.train.total_batch_size=2", f"train.output_dir={output}"),
        ],
    )


def test_trains_and_evaluates_with_what_the_trainer_can(lazy, shapes, tmp_path):
    trainer = LazyTrainer(make_tiny(lazy, shapes, tmp_path))
    trainer.resume_or_load(resume=False)
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["trainer"]["hooks"]["EMA"] == {"num_steps": 2}
    assert "segm/AP" in json.loads((tmp_path / "evaluation.json").read_text())
    assert trainer._trainer.num_micro_batches == 2
    assert trainer._trainer.precision == torch.bfloat16
    assert trainer._trainer.clip_gradients is not None

    changes = ["model.num_classes=8", "optimizer.weight_decay=0.5", "train.max_iter=3"]
    lazy = LazyConfig.apply_overrides(lazy, changes)
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS_ALLOW"):
        LazyTrainer(lazy).resume_or_load(resume=True)
    allow = "train.weights_allow=['head.class_logits.*']"
    resumed = LazyTrainer(LazyConfig.apply_overrides(lazy, [allow]))
    resumed.resume_or_load(resume=True)
    optimizer = resumed._trainer.optimizer
    assert optimizer.state
    assert {group["weight_decay"] for group in optimizer.param_groups} >= {0.5}


def test_a_bad_step_is_replayed_with_the_config_that_was_saved(lazy, shapes, tmp_path, capsys):
    options = ["optimizer.lr=1e30", "lr_multiplier.warmup_factor=1", "train.max_iter=3"]
    options += ["train.clip_full_model.enabled=False", "train.amp.enabled=False"]
    lazy = LazyConfig.apply_overrides(make_tiny(lazy, shapes, tmp_path), options)
    trainer = LazyTrainer(lazy)
    trainer.resume_or_load(resume=False)
    with pytest.raises(BadNumbersError, match="bad_step_0000001.pth"):
        trainer.train()
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))  # as Detectron2's default_setup does
    file = str(tmp_path / "bad_step_0000001.pth")
    assert replay_step.main([file]) == 2
    assert "--lazy-config" in capsys.readouterr().err
    assert replay_step.main([file, "--lazy-config", str(tmp_path / "config.yaml")]) == 1
    assert "Iteration 1, float32" in capsys.readouterr().out
    assert replay_step.main([file, "--lazy-config", FILE]) == 2  # another number of classes
    assert "do not fit" in capsys.readouterr().err


def test_keys_that_are_unknown_bad_or_missing_are_named(lazy):
    lazy.train.ema.decai = 0.9
    with pytest.raises(ConfigError, match="train.ema.decai"):
        trainer_config(lazy)
    del lazy.train.ema.decai
    lazy.train.max_iter = "long"
    with pytest.raises(ConfigError, match="train.max_iter is 'long'"):
        trainer_config(lazy)
    del lazy.lr_multiplier
    with pytest.raises(ConfigError, match="has no lr_multiplier"):
        trainer_config(lazy)


def test_overrides_of_no_part_are_refused():
    args = lazyconfig_train_net.parse_args(["--config-file", FILE, "optimizr.lr=0.1"])
    with pytest.raises(ConfigError, match=r"optimizr: no part .*'optimizer'"):
        lazyconfig_train_net.main(args)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.head.conv_dim=33", "lazy config's `model` cannot be built: ValueError"),
        ("optimizer.lr=-1", "optimizer cannot be built: ValueError: Invalid learning rate"),
        ("lr_multiplier.warmup_method=slow", "lr_multiplier cannot be built"),
        ("dataloader.train.total_batch_size=0", "SOLVER.IMS_PER_BATCH is 0"),
        ("train.ema.decay=2", "train.ema.decay is 2"),
        ("dataloader.train.dataset.names=gone", "gone"),
        (f"model.scale_ranges={[[5000, 6000]] * 5}", "nothing to train on"),
    ],
)
def test_what_cannot_be_constructed_is_refused(lazy, shapes, tmp_path, override, named):
    lazy = LazyConfig.apply_overrides(make_tiny(lazy, shapes, tmp_path), [override])
    with pytest.raises((ConfigError, DatasetError)) as error:
        LazyTrainer(lazy)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("filtered", [True, False])
def test_data_without_objects_is_refused(lazy, shapes, tmp_path, filtered):
    lazy = make_tiny(lazy, shapes, tmp_path)
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps(content | {"annotations": []}))
    register_coco_format("lazy_empty", tmp_path / "empty.json", shapes / "train")
    lazy.dataloader.train.dataset.names = "lazy_empty"
    lazy.dataloader.train.dataset.filter_empty = filtered
    with pytest.raises(DatasetError, match="'lazy_empty': none of the 24 images"):
        LazyTrainer(lazy)
