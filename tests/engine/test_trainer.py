"""The trainer: schedule scaling, data arguments, exact order, evaluation, learning."""

import itertools
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from solo_d2.config import default_config, load_config
from solo_d2.data.classes import dataset_categories, make_categories
from solo_d2.data.loader import GroupedBatchSampler
from solo_d2.engine import Trainer, argument_parser, evaluate, scale_schedule, setup
from solo_d2.engine.launch import launch
from solo_d2.engine.setup import save_config
from solo_d2.engine.trainer import load_weights
from solo_d2.evaluation import build_evaluator
from solo_d2.utils.commands import run_command
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.engine.runs import parse, run_config, run_model, train, write_config
from tests.isolation import restored
from tests.json_damage import save_boxes
from tests.modeling.tiny import tiny_config, tiny_model

TWO_VIEWS = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (96,))


def test_own_data_trains_and_evaluates_from_the_command_line_alone(shapes, tmp_path):
    cfg = setup(run_config(shapes, tmp_path, "TEST.EVAL_PERIOD", 2, *TWO_VIEWS))
    assert cfg.MODEL.SOLO.NUM_CLASSES == 7
    assert cfg.DATASETS.TRAIN == ("custom_train",)
    assert cfg.DATASETS.TEST == ("custom_val",)
    train(cfg)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.json", "model_final.pth", "last_checkpoint"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert cfg.MODEL.CLASSES == saved["classes"] == dataset_categories("shapes_train")
    assert load_config(f"{tmp_path}/config.yaml").MODEL.CLASSES == saved["classes"]
    results = evaluate(setup(saved_run(tmp_path)))
    assert {"segm", "segm_TTA"} <= set(results)
    metrics = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"segm/AP", "segm_TTA/AP"} <= set(metrics)
    tiled = saved_run(tmp_path, "TEST.AUG.ENABLED", False, "TEST.TILES.SIZE", 64)
    assert set(evaluate(setup(tiled))) == {"segm", "bbox"}
    assert "segm_TTA/AP50" in (tmp_path / "metrics.json").read_text()  # at the end of training too


def test_the_training_data_determines_the_classes(shapes, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.getLogger("solo_d2"), "warning", warnings.append)
    others = make_categories(["disc"], [1])
    with pytest.raises(ConfigError, match=r"MODEL\.CLASSES has other classes .*: remove the key"):
        setup(run_config(shapes, tmp_path, "MODEL.CLASSES", others))
    classes = dataset_categories("shapes_train")
    assert setup(run_config(shapes, tmp_path, "MODEL.CLASSES", classes)).MODEL.CLASSES == classes
    assert "MODEL.CLASSES" not in str(warnings)
    model = run_model()
    model.MODEL.CLASSES = others
    data = "('custom_train',)"
    args = parse(write_config(tmp_path, model), "DATASETS.TRAIN", data, "DATASETS.TEST", data)
    assert setup(args).MODEL.CLASSES == classes
    assert "MODEL.CLASSES has other classes" in str(warnings)


def test_evaluating_a_random_model_is_warned_of(caplog):
    load_weights(default_config(), torch.nn.Linear(1, 1))
    assert "has random weights" in caplog.text


def saved_run(folder, *data):
    """Arguments of an evaluation of what a training left, on other data if some is named."""
    return argument_parser().parse_args(
        ["--config-file", f"{folder}/config.yaml", "--eval-only", *map(str, data)]
        + ["MODEL.WEIGHTS", f"{folder}/model_final.pth"]
    )


def test_a_saved_model_is_evaluated_on_other_data_of_its_classes_alone(shapes, tmp_path):
    with restored():
        trainer = Trainer(setup(run_config(shapes, tmp_path)))
        trainer.save_config()
        trainer.checkpointer.save("model_final")
    content = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    for item in (*content["categories"], *content["annotations"]):
        key = "id" if "name" in item else "category_id"
        item[key] = 10 * item[key]
    (tmp_path / "other.json").write_text(json.dumps(content))
    data = "--val-json", tmp_path / "other.json", "--val-images", shapes / "val"
    resumed = argument_parser().parse_args(
        ["--config-file", f"{tmp_path}/config.yaml", "--eval-only", "--resume", *map(str, data)]
        + ["MODEL.WEIGHTS", "gone.pth"]
    )
    with restored():
        assert setup(resumed).MODEL.WEIGHTS == f"{tmp_path}/model_final.pth"
    # What it was trained on may be gone.
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("instances_train", "gone"))
    with restored():
        evaluator = build_evaluator(setup(saved_run(tmp_path, *data)), "custom_val", str(tmp_path))
        first = content["images"][0]["id"]
        found = [{"category_id": key, "image_id": first} for key in (0, 6)]
        evaluator._use_category_ids(found)
        assert [x["category_id"] for x in found] == [10, 70]  # those of the test set
    content["categories"][1]["name"] = "oval"
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="'square'.*'oval'"):
        setup(saved_run(tmp_path, *data))


def test_a_saved_config_trains_on_data_with_other_classes(shapes, tmp_path):
    with restored():
        Trainer(setup(run_config(shapes, tmp_path))).save_config()
    data = []
    for part in ("train", "val"):
        content = json.loads((shapes / f"annotations/instances_{part}.json").read_text())
        content["categories"].append({"id": 99, "name": "new"})
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
        data += [f"--{part}-json", f"{tmp_path}/{part}.json"]
        data += [f"--{part}-images", f"{shapes}/{part}"]
    options = ["--config-file", f"{tmp_path}/config.yaml", *data]
    with restored():
        assert setup(argument_parser().parse_args(options)).MODEL.SOLO.NUM_CLASSES == 8
    with restored(), pytest.raises(ConfigError, match="MODEL.SOLO.NUM_CLASSES is 7"):
        setup(argument_parser().parse_args([*options, "MODEL.SOLO.NUM_CLASSES", "7"]))


def test_without_validation_data_nothing_is_evaluated(shapes, tmp_path):
    args = run_config(shapes, tmp_path, "TEST.EVAL_PERIOD", 2)
    args.val_json = args.val_images = None
    cfg = load_config(args.config_file)
    cfg.DATASETS.TEST = ("shapes_val",)
    Path(args.config_file).write_text(cfg.dump())
    cfg = setup(args)
    assert cfg.DATASETS.TEST == ()
    assert Trainer.test(cfg, None) == {}
    assert not (tmp_path / "evaluation.json").exists()
    args.opts += ["SOLVER.EARLY_STOPPING_PATIENCE", "2"]
    with pytest.raises(ConfigError, match=r"EARLY_STOPPING_PATIENCE is 2, .* --val-json"):
        setup(args)
    args.eval_only = True
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST is empty"):
        setup(args)


def test_averaged_weights_are_what_is_evaluated_and_saved(shapes, tmp_path, monkeypatch):
    seen = []

    def test(_cls, _cfg, model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    trainer = train(setup(run_config(shapes, tmp_path, "SOLVER.EMA.ENABLED", True)))
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    trained = trainer.model.state_dict()
    assert any(not torch.equal(seen[-1][name], trained[name]) for name in trained)
    for name, value in trained.items():
        assert torch.equal(saved["model"][name], seen[-1][name])
        assert torch.equal(saved["trained_model"][name], value)
    with pytest.raises(ConfigError, match="SOLVER.EMA.ENABLED is False"):
        train(setup(run_config(shapes, tmp_path)), resume=True)


def test_averaging_starts_from_the_weights_that_are_loaded(shapes, tmp_path):
    weights = tmp_path / "weights.pth"
    cfg = run_model()
    cfg.MODEL.SOLO.NUM_CLASSES = 7
    torch.save({"model": tiny_model(cfg).state_dict()}, weights)
    opts = ("MODEL.WEIGHTS", weights, "SOLVER.EMA.ENABLED", True)
    trainer = Trainer(setup(run_config(shapes, tmp_path / "averaged", *opts)))
    trainer.resume_or_load(resume=False)
    expected = torch.load(weights, weights_only=True)["model"]
    for model in (trainer.model, trainer.ema.average):
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected[name])


def test_a_random_seed_is_drawn_once_for_a_run_and_its_resume(shapes, tmp_path):
    args = run_config(shapes, tmp_path, "SEED", -1)
    first = setup(args)
    save_config(first)
    args.resume = True
    assert first.SEED >= 0
    assert setup(args).SEED == first.SEED


def test_reading_a_sample_leaves_the_random_state_alone(shapes, tmp_path):
    dataset = Trainer.build_train_loader(setup(run_config(shapes, tmp_path))).dataset
    results = []
    for read in (False, True):
        np.random.seed(3)
        torch.manual_seed(3)
        if read:
            dataset[0, 0]
        results.append((np.random.rand(), torch.rand(1).item()))
    assert results[0] == results[1]


def test_batches_hold_one_orientation_and_every_index():
    groups = [0, 1, 0, 1, 1, 0, 1, 1]
    sampler = GroupedBatchSampler(itertools.cycle(range(8)), groups, 2)
    batches = list(itertools.islice(iter(sampler), 8))
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in batches)
    places = [place for batch in batches for place, _ in batch]
    assert len(set(places)) == len(places)
    sampler.start_batch = 5
    assert list(itertools.islice(iter(sampler), 3)) == batches[5:]


def test_schedule_is_scaled_to_the_batch_once():
    cfg = tiny_config()
    cfg.merge_from_file("configs/coco/solov2_R50_1x.yaml")
    cfg.SOLVER.IMS_PER_BATCH = 4
    unscaled = cfg.clone()
    unscaled.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    expected = unscaled.dump()
    scale_schedule(unscaled)
    assert unscaled.dump() == expected
    scale_schedule(cfg)
    assert pytest.approx(0.0025) == cfg.SOLVER.BASE_LR
    assert cfg.SOLVER.MAX_ITER == 360_000
    assert cfg.SOLVER.STEPS == (240_000, 320_000)
    assert cfg.SOLVER.WARMUP_ITERS == 4000
    assert cfg.TEST.EVAL_PERIOD == 40_000
    before = cfg.dump()
    scale_schedule(cfg)
    assert cfg.dump() == before


def test_keys_of_the_command_line_are_not_scaled(shapes, tmp_path):
    given = {"SOLVER.MAX_ITER": 9, "SOLVER.BASE_LR": 0.02, "SOLVER.STEPS": (3, 5)}
    given |= {"SOLVER.WARMUP_ITERS": 2, "TEST.EVAL_PERIOD": 3}
    opts = [part for pair in given.items() for part in pair]
    cfg = setup(run_config(shapes, tmp_path, *opts, "SOLVER.IMS_PER_BATCH", 2))
    for key, value in given.items():
        section, name = key.split(".")
        assert cfg[section][name] == value, key
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 4  # of the config file, for batches of 4
    log = (tmp_path / "log.txt").read_text()
    assert "SOLVER.MAX_ITER 9" in log
    assert "SOLVER.CHECKPOINT_PERIOD 2 -> 4" in log


@pytest.mark.parametrize(
    ("opts", "error", "named"),
    [
        (["MODEL.SOLO.NUM_CLASSES", 3], ConfigError, ["MODEL.SOLO.NUM_CLASSES is 3", "7"]),
        (["SOLVER.ACCUMULATE_STEPS", 5], ConfigError, ["ACCUMULATE_STEPS is 5", "to the", "4"]),
        (["SOLVER.EARLY_STOPPING_PATIENCE", 3], ConfigError, ["PATIENCE is 3", "EVAL_PERIOD"]),
        (["DATASETS.TRAIN", ("nothing",)], DatasetError, ["nothing"]),
        (["MODEL.WEIGHTS", "gone.pth"], ConfigError, ["MODEL.WEIGHTS is gone.pth"]),
    ],
)
def test_bad_settings_are_named_before_training(shapes, tmp_path, opts, error, named):
    with pytest.raises(error) as caught:
        Trainer(setup(run_config(shapes, tmp_path, *opts)))
    assert all(text in str(caught.value) for text in named)


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["SOLVER.WARMUP_ITERS", 9], "SOLVER.WARMUP_ITERS is 9, but SOLVER.MAX_ITER is 4"),
        (["SOLVER.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 2], "PATIENCE 2 has no effect"),
        (["TEST.TILES.SIZE", 64], "TEST.TILES has no effect"),
        (["DATASETS.TEST", ("custom_train",)], "TEST contains data of DATASETS.TRAIN"),
        (["MODEL.PIXEL_MEAN", [0.5, 0.4, 0.4]], "PIXEL_MEAN [0.5, 0.4, 0.4] is for images in [0"),
    ],
)
def test_keys_that_do_not_suit_a_training_are_warned_of(shapes, tmp_path, opts, named):
    setup(run_config(shapes, tmp_path, *opts))
    assert named in (tmp_path / "log.txt").read_text()


def test_data_without_an_evaluator_is_refused_before_training(shapes, tmp_path):
    class WithOwnEvaluator(Trainer):
        build_evaluator = classmethod(lambda *_: None)

    cfg = setup(run_config(shapes, tmp_path)).clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ("bare",)
    DatasetCatalog.register("bare", lambda: [])
    with pytest.raises(ConfigError, match="'bare' has no evaluator_type"):
        Trainer(cfg)
    WithOwnEvaluator(cfg)


def test_expected_results_are_not_verified(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"segm": {"AP": 1.0}}))
    opts = ["TEST.EXPECTED_RESULTS", [["bbox", "AP", 9.0, 1.0]], "SOLVER.MAX_ITER", 1]
    Trainer(setup(run_config(shapes, tmp_path, *opts))).train()


def test_no_checkpoint_to_evaluate_is_an_error(shapes, tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint to evaluate"):
        setup(run_config(shapes, tmp_path, "--eval-only", "--resume"))


def test_missing_coco_is_one_line_that_says_where_it_looked(tmp_path, capsys):
    args = argument_parser().parse_args(["--config-file", "configs/coco/solov2_R50_3x.yaml"])
    args.opts = ["OUTPUT_DIR", str(tmp_path / "out")]
    assert run_command("", lambda: launch(setup, args), failed=1) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("DatasetError: ")
    assert "instances_train2017.json" in line
    assert "DETECTRON2_DATASETS" in line
    assert not (tmp_path / "out").exists()


def make_boxes(folder):
    """Images of 64x64, each with two bright rectangles on dark noise, in COCO's format."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 64), ("val", 16)):
        (folder / split).mkdir()
        boxes = [[] for _ in range(num)]
        for number, objects in enumerate(boxes, start=1):
            pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            for left in (0, 32):
                low, high = (left + 1, 1, 10, 10), (left + 8, 20, 24, 40)
                x, y, w, h = (int(value) for value in rng.integers(low, high))
                pixels[y : y + h, x : x + w] = rng.integers(150, 256, 3)
                objects.append((1, x, y, w, h))
            cv2.imwrite(str(folder / split / f"{number}.png"), pixels)
        save_boxes(folder / f"{split}.json", (64, 64), boxes, ["box"])


@pytest.mark.slow
def test_learns_to_find_rectangles(tmp_path):
    """From scratch in seconds: the loss falls, and held-out AP is far from chance, which is 0."""
    make_boxes(tmp_path)
    opts = {
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3"],
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.SOLO.IN_FEATURES": ["p2", "p3"],
        "MODEL.SOLO.STRIDES": [8, 8],
        "MODEL.SOLO.NUM_GRIDS": [10, 6],
        "MODEL.SOLO.SCALE_RANGES": [[1, 24], [16, 1024]],
        "MODEL.SOLO.HEAD.NUM_CONVS": 1,
        "MODEL.SOLO.HEAD.CONV_DIM": 32,
        "MODEL.SOLO.MASK_FEATURE.IN_FEATURES": ["p2", "p3"],
        "MODEL.SOLO.MASK_FEATURE.CONV_DIM": 32,
        "MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS": 32,
        "SOLVER.IMS_PER_BATCH": 6,
        "SOLVER.REFERENCE_IMS_PER_BATCH": 6,
        "SOLVER.BASE_LR": 0.002,
        "SOLVER.MAX_ITER": 36,
        "SOLVER.WARMUP_ITERS": 10,
        "OUTPUT_DIR": tmp_path / "out",
    }
    words = ["--config-file", "configs/quickstart/solov2_shapes.yaml"]
    for split in ("train", "val"):
        words += [f"--{split}-json", tmp_path / f"{split}.json"]
        words += [f"--{split}-images", tmp_path / split]
    words += [part for pair in opts.items() for part in pair]
    trainer = train(setup(argument_parser().parse_args([*map(str, words)])))
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    assert trainer.storage.latest()["segm/AP50"][0] > 50
