"""The trainer on panoptic data: from files named on the command line to all metrics."""

import pytest

from solo_d2.engine import Trainer, setup
from solo_d2.utils.errors import ConfigError
from tests.engine.runs import parse, run_config, write_config
from tests.modeling.tiny import panoptic_config


def split_arguments(shapes, argument, split):
    return [
        *(f"--{argument}-panoptic-json", shapes / "annotations" / f"panoptic_{split}.json"),
        *(f"--{argument}-panoptic-dir", shapes / f"panoptic_{split}"),
        *(f"--{argument}-images", shapes / split),
    ]


def test_a_folder_in_panoptic_format_trains_and_evaluates(shapes, tmp_path):
    cfg = panoptic_config()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 0
    file = write_config(tmp_path, cfg)
    data = [split_arguments(shapes, "train", "train"), split_arguments(shapes, "val", "val")]
    cfg = setup(parse(file, *data[0], *data[1], "SOLVER.MAX_ITER", 2))
    assert cfg.MODEL.SOLO.NUM_CLASSES == 7
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5
    assert cfg.DATASETS.TRAIN == ("custom_train",)
    trainer = Trainer(cfg)
    sample = next(iter(trainer.data_loader))[0]
    assert sample["sem_seg"].shape == sample["image"].shape[1:]
    trainer.train()
    results = trainer._last_eval_results
    assert set(results) == {"bbox", "segm", "sem_seg", "panoptic_seg"}
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert (shapes / "panoptic_train_converted" / "instances.json").is_file()


def test_arguments_that_do_not_go_together(shapes, tmp_path):
    file = write_config(tmp_path)
    whole = split_arguments(shapes, "val", "val")
    for arguments, named in (
        *((whole[:place] + whole[place + 2 :], "--val-panoptic-dir") for place in (0, 2, 4)),
        ([*whole, "--val-json", "a.json"], "--val-json"),
    ):
        with pytest.raises(ConfigError, match=named):
            setup(parse(file, *arguments))
    args = run_config(shapes, tmp_path)
    args.val_images = None
    with pytest.raises(ConfigError, match="--val-json and --val-images belong together"):
        setup(args)
