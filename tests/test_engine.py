"""The trainer: schedule scaling, data arguments, exact order and exact resume, learning."""

import itertools
import sys

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.data import ShapesParams, ensure_shapes  # noqa: E402
from solo_d2.data.loader import GroupedBatchSampler  # noqa: E402
from solo_d2.engine import Trainer, argument_parser, evaluate, scale_schedule, setup  # noqa: E402
from solo_d2.errors import ConfigError, DatasetError  # noqa: E402
from tests.modeling.tiny import tiny_config  # noqa: E402


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of generated images in COCO format."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    return ensure_shapes(root, ShapesParams(num_train=24, num_val=6))


def run_config(shapes, output, *opts):
    """A tiny training of `shapes`, given as one's own COCO-format data."""
    file = output / "tiny.yaml"
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80, 96)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(cfg.dump())
    data = [
        *("--train-json", f"{shapes}/annotations/instances_train.json"),
        *("--train-images", f"{shapes}/train"),
        *("--val-json", f"{shapes}/annotations/instances_val.json"),
        *("--val-images", f"{shapes}/val"),
    ]
    return argument_parser().parse_args(["--config-file", str(file), *data, *map(str, opts)])


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def weights(trainer):
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def test_own_data_trains_and_evaluates_from_the_command_line_alone(shapes, tmp_path):
    cfg = setup(run_config(shapes, tmp_path, "TEST.EVAL_PERIOD", 2))
    assert cfg.MODEL.SOLO.NUM_CLASSES == 7
    assert cfg.DATASETS.TRAIN == ("custom_train",)
    assert cfg.DATASETS.TEST == ("custom_val",)
    train(cfg)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.json", "model_final.pth", "last_checkpoint"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    saved = argument_parser().parse_args(
        ["--config-file", f"{tmp_path}/config.yaml", "--eval-only"]
        + ["MODEL.WEIGHTS", f"{tmp_path}/model_final.pth"]
    )
    assert "segm" in evaluate(setup(saved))


def test_resume_continues_exactly(shapes, tmp_path):
    whole = train(setup(run_config(shapes, tmp_path / "whole")))
    half = setup(run_config(shapes, tmp_path / "half"))
    stopped = Trainer(half)
    stopped.max_iter = 2  # as if it was stopped after the checkpoint of two iterations
    stopped.train()
    resumed = train(half, resume=True)
    assert resumed.start_iter == 2
    expected = weights(whole)
    for key, value in weights(resumed).items():
        assert torch.equal(value, expected[key]), key


def test_order_and_augmentation_do_not_depend_on_workers_or_resume(shapes, tmp_path):
    def batches(workers, start, count):
        cfg = setup(run_config(shapes, tmp_path, "DATALOADER.NUM_WORKERS", workers))
        loader = Trainer.build_train_loader(cfg)
        loader.batch_sampler.start_batch = start
        return list(itertools.islice(iter(loader), count))

    whole = batches(0, 0, 5)
    for other in (batches(2, 2, 3), batches(0, 2, 3)):
        for a, b in zip(whole[2:], other, strict=True):
            assert [x["image_id"] for x in a] == [x["image_id"] for x in b]
            assert all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))
    sizes = {tuple(x["image"].shape) for batch in whole for x in batch}
    assert len(sizes) > 3  # augmentation is random after all


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
    scale_schedule(cfg)
    assert pytest.approx(0.0025) == cfg.SOLVER.BASE_LR
    assert cfg.SOLVER.MAX_ITER == 360_000
    assert cfg.SOLVER.STEPS == (240_000, 320_000)
    assert cfg.SOLVER.WARMUP_ITERS == 4000
    assert cfg.TEST.EVAL_PERIOD == 40_000
    before = cfg.dump()
    scale_schedule(cfg)
    assert cfg.dump() == before


def test_scaling_can_be_switched_off():
    cfg = tiny_config()
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    before = cfg.dump()
    scale_schedule(cfg)
    assert cfg.dump() == before


def test_best_checkpoint_is_kept_and_remembered(shapes, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(
        Trainer, "test", classmethod(lambda *_: {"segm": {"AP": next(scores)}, "bbox": {}})
    )
    cfg = setup(run_config(shapes, tmp_path, "TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 6))
    train(cfg)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 3
    last = torch.load(tmp_path / "model_final.pth", weights_only=True)
    states = str(last["trainer"])
    assert "ResumableBestCheckpointer" in states
    assert "30.0" in states


@pytest.mark.parametrize(
    ("opts", "error", "named"),
    [
        (["MODEL.SOLO.NUM_CLASSES", 3], ConfigError, ["MODEL.SOLO.NUM_CLASSES is 3", "7"]),
        (["SOLVER.OPTIMIZER", "Adam"], ConfigError, ["SOLVER.OPTIMIZER is 'Adam'"]),
        (["DATASETS.TRAIN", ("nothing",)], DatasetError, ["nothing"]),
    ],
)
def test_bad_settings_are_named_before_training(shapes, tmp_path, opts, error, named):
    with pytest.raises(error) as caught:
        Trainer(setup(run_config(shapes, tmp_path, *opts)))
    assert all(text in str(caught.value) for text in named)


def test_a_json_without_its_folder_is_refused(shapes, tmp_path):
    args = run_config(shapes, tmp_path)
    args.val_images = None
    with pytest.raises(ConfigError, match="--val-json and --val-images belong together"):
        setup(args)


def test_missing_coco_says_where_it_looked(tmp_path, monkeypatch):
    args = argument_parser().parse_args(["--config-file", "configs/coco/solov2_R50_3x.yaml"])
    args.opts = ["OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(DatasetError, match="instances_train2017.json") as error:
        setup(args)
    assert "DETECTRON2_DATASETS" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_learns_in_a_few_hundred_iterations(tmp_path):
    """The quickstart, cut short: the loss falls and held-out AP passes a floor."""
    root = ensure_shapes(tmp_path / "shapes", ShapesParams(num_train=600, num_val=40))
    data = [
        [f"learn_{split}", f"{root}/annotations/instances_{split}.json", f"{root}/{split}"]
        for split in ("train", "val")
    ]
    opts = {
        "DATASETS.COCO_FORMAT": data,
        "DATASETS.TRAIN": ("learn_train",),
        "DATASETS.TEST": ("learn_val",),
        "SOLVER.MAX_ITER": 300,
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    args = argument_parser().parse_args(["--config-file", "configs/quickstart/solov2_shapes.yaml"])
    args.opts = [part for pair in opts.items() for part in pair]
    trainer = train(setup(args))
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert trainer.storage.latest()["segm/AP"][0] > 5


def test_command_line_prints_one_line_for_bad_input(tmp_path):
    import subprocess

    result = subprocess.run(
        [sys.executable, "train_net.py", "--config-file", "configs/coco/solov2_R50_3x.yaml"]
        + ["OUTPUT_DIR", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("DatasetError: ")
    assert "Traceback" not in result.stderr
