"""Evaluations of data of which some images cannot be read."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog
from torch import nn

from solo_d2.config import default_config
from solo_d2.data.coco_format import register_coco_format
from solo_d2.data.unreadable import UNREADABLE
from solo_d2.engine import Trainer
from solo_d2.evaluation import build_evaluator, evaluate_dataset, evaluation_loader
from solo_d2.evaluation.run import SkippingModel
from solo_d2.utils.errors import DatasetError
from tests.evaluation.made_up import images_of, rectangle, rectangles
from tests.pictures import picture, save

NAME = "run_val"
SIZE = (40, 60)
BOX = (10, 5, 30, 25)  # XYXY, the object of each image


@pytest.fixture
def cfg(tmp_path):
    """Four images with an object each; the second is no image, the third is too large."""
    content = {
        "images": images_of(SIZE, 1, 2, 3, 4, extension="png"),
        "annotations": [rectangle(key, BOX, key, 1) for key in (1, 2, 3, 4)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    for key, size in ((1, SIZE), (3, (50, 70)), (4, SIZE)):
        save(tmp_path / f"{key}.png", picture(*size))
    (tmp_path / "2.png").write_text("no image")
    register_coco_format(NAME, tmp_path / "a.json", tmp_path)
    DatasetCatalog.get(NAME)
    cfg = default_config()
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


class Knows(nn.Module):
    """Finds the object in every image that it is given."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, batched_inputs):
        assert not self.training
        self.asked += [sample["image_id"] for sample in batched_inputs]
        assert all(sample["image"].shape == (3, *SIZE) for sample in batched_inputs)
        return [{"instances": rectangles(SIZE, BOX)} for _ in batched_inputs]


@pytest.mark.parametrize("contours", [False, True])
def test_they_count_as_images_without_predictions(cfg, caplog, contours):
    cfg.MODEL.SOLO.MASK_TARGET = "contour" if contours else "mask"
    model = Knows()
    assert model.training
    with caplog.at_level(logging.WARNING, logger="solo_d2"):
        results = evaluate_dataset(model, evaluation_loader(cfg, NAME), build_evaluator(cfg, NAME))
    assert model.asked == [1, 4]
    assert model.training  # as before
    # Half of the objects are found, with nothing wrong: precision 1 up to recall 0.5.
    assert set(results) == {"bbox", "contours" if contours else "segm"}
    assert results["bbox" if contours else "segm"]["AP"] == pytest.approx(100 * 51 / 101)
    if contours:
        assert results["contours"]["recall"] < 51
    last = caplog.records[-1].message
    assert last.startswith("2 images could not be read")
    for name, reason in (("2.png", "not an image"), ("3.png", "50 x 70 pixels")):
        assert sum(name in record.message for record in caplog.records) == 2
        assert f"{name} " in last
        assert reason in last


class Fails(nn.Module):
    """Has a part that is not trained, and raises in an evaluation."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(1).eval()

    def forward(self, batched_inputs):
        raise ValueError("no image will do")


def test_an_evaluation_leaves_each_part_of_the_model_in_its_mode(cfg):
    model = Fails()
    with pytest.raises(ValueError, match="no image will do"):
        evaluate_dataset(model, evaluation_loader(cfg, NAME), build_evaluator(cfg, NAME))
    assert model.training
    assert not model.frozen.training


def test_a_trainer_evaluates_all_the_same(cfg):
    cfg.DATASETS.TEST = (NAME,)
    assert Trainer.test(cfg, Knows())["segm"]["AP"] == pytest.approx(100 * 51 / 101)
    figures = json.loads(open(f"{cfg.OUTPUT_DIR}/evaluation.json").read())
    assert figures["segm/AP"] == pytest.approx(100 * 51 / 101)
    with pytest.raises(DatasetError, match=r"2\.png cannot be read"):
        list(Trainer.build_test_loader(cfg, NAME))  # what others than evaluations look at


def test_a_batch_of_good_and_bad_ones_keeps_its_order():
    model = SkippingModel(lambda batch: [{"found": sample["image_id"]} for sample in batch])
    batch = [{"image_id": 1}, {"image_id": 2, UNREADABLE: "2 is torn"}, {"image_id": 3}]
    assert model(batch) == [{"found": 1}, {}, {"found": 3}]
    assert model([batch[1]]) == [{}]
    assert model.unreadable == ["2 is torn"] * 2
    model = SkippingModel(lambda _: pytest.fail("nothing to ask about"))
    assert model([batch[1]]) == [{}]
