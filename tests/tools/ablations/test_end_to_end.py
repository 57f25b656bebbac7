"""A table from the command to the report, with real trainings of a few steps."""

import json

import pytest

pytestmark = [pytest.mark.detectron2, pytest.mark.slow]
pytest.importorskip("detectron2")

import train_net  # noqa: E402
from solo_d2.data import ShapesParams, ensure_shapes  # noqa: E402
from solo_d2.engine import argument_parser  # noqa: E402
from tests.modeling.tiny import tiny_config  # noqa: E402
from tools.ablations.command import main  # noqa: E402


def tiny_base(folder):
    """A small model on a few generated images, given as one's own data."""
    data = ensure_shapes(folder / "shapes", ShapesParams(num_train=8, num_val=3))
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.DATASETS.COCO_FORMAT = [
        [split, f"{data}/annotations/instances_{split}.json", f"{data}/{split}"]
        for split in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    file = folder / "tiny.yaml"
    file.write_text(cfg.dump())
    return file


def train(command, log):
    """Train in this process."""
    train_net.main(argument_parser().parse_args(command[2:]))
    return 0


def test_two_rows(tmp_path, capsys):
    words = ["mask_feature", "--base-config", str(tiny_base(tmp_path)), "--max-iter", "2"]
    words += ["--output", str(tmp_path / "out"), "--seeds", "3"]
    words += ["MODEL.SOLO.MASK_FEATURE.NUM_CONVS", "1"]
    assert main(words, launch=train) == 0, capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "tiny" / "mask_feature.json").read_text())
    assert [row["row"] for row in content["rows"]] == ["separate", "unified"]
    for row in content["rows"]:
        assert row["overrides"] == {
            "MODEL.SOLO.MASK_FEATURE.TYPE": row["row"],
            "MODEL.SOLO.MASK_FEATURE.CONV_DIM": {"separate": 256, "unified": 128}[row["row"]],
        }
        assert "segm/AP" in row["runs"][0]["metrics"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("finished before") == 2
