"""The trainer on panoptic data: from files named on the command line to all metrics."""

import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.data import ShapesParams, ensure_shapes  # noqa: E402
from solo_d2.engine import Trainer, argument_parser, setup  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.modeling.tiny import tiny_config  # noqa: E402


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return ensure_shapes(
        tmp_path_factory.mktemp("panoptic") / "shapes", ShapesParams(num_train=6, num_val=3)
    )


def parse(output, *arguments):
    cfg = tiny_config()
    cfg.merge_from_file("configs/base/panoptic_fpn.yaml")
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 0
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 2
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "tiny.yaml").write_text(cfg.dump())
    return argument_parser().parse_args(
        ["--config-file", str(output / "tiny.yaml"), *map(str, arguments)]
    )


def split_arguments(shapes, argument, split):
    return [
        *(f"--{argument}-panoptic-json", shapes / "annotations" / f"panoptic_{split}.json"),
        *(f"--{argument}-panoptic-dir", shapes / f"panoptic_{split}"),
        *(f"--{argument}-images", shapes / split),
    ]


def test_a_folder_in_panoptic_format_trains_and_evaluates(shapes, tmp_path):
    arguments = [
        *split_arguments(shapes, "train", "train"),
        *split_arguments(shapes, "val", "val"),
    ]
    cfg = setup(parse(tmp_path / "run", *arguments))
    assert cfg.MODEL.SOLO.NUM_CLASSES == 7
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5
    assert cfg.DATASETS.TRAIN == ("custom_train",)
    trainer = Trainer(cfg)
    sample = next(iter(trainer.data_loader))[0]
    assert sample["sem_seg"].shape == sample["image"].shape[1:]
    trainer.train()
    results = trainer.test(cfg, trainer.model)
    assert set(results) == {"bbox", "segm", "sem_seg", "panoptic_seg"}
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert (shapes / "panoptic_train_converted" / "instances.json").is_file()


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_all_three_arguments_belong_together(shapes, tmp_path, left_out):
    arguments = split_arguments(shapes, "val", "val")
    del arguments[left_out : left_out + 2]
    with pytest.raises(ConfigError, match="--val-panoptic-dir"):
        setup(parse(tmp_path / "run", *arguments))


def test_instances_and_panoptic_exclude_each_other(shapes, tmp_path):
    arguments = [*split_arguments(shapes, "val", "val"), "--val-json", "a.json"]
    with pytest.raises(ConfigError, match="--val-json"):
        setup(parse(tmp_path / "run", *arguments))
