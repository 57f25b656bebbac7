"""Trainings and evaluations on data of which some image files cannot be read."""

import json
import logging
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog

from solo_d2.engine import Trainer, evaluate, setup
from solo_d2.modeling.meta_arch import SOLO
from solo_d2.utils.errors import DatasetError
from tests.engine.runs import run_config, train
from tests.isolation import restored
from tests.pictures import bad_pictures


@pytest.fixture
def damaged(shapes, tmp_path):
    """Generated images, of which 12 of 24 to train on and 2 of 6 to evaluate on are bad."""
    copied = shutil.copytree(shapes, tmp_path / "shapes")
    kinds = sorted(bad_pictures(tmp_path / "bad"))
    kinds = [kind for kind in kinds if kind not in ("missing.jpg", "a_directory.jpg")]
    for split, count in (("train", 12), ("val", 2)):
        for file, kind in zip(sorted((copied / split).iterdir())[-count:], kinds, strict=False):
            shutil.copy(tmp_path / "bad" / kind, file)
    return copied


def test_training_goes_on_and_says_what_it_left_out(damaged, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {}))
    cfg = setup(run_config(damaged, tmp_path / "out", "SOLVER.MAX_ITER", 6))
    logging.getLogger("solo_d2").propagate = True
    trainer = train(cfg)
    assert (tmp_path / "out/model_final.pth").is_file()
    found = trainer._trainer.unreadable.reasons
    assert 3 <= len(found) <= 12
    logged = {r.message for r in caplog.records if "Another image takes" in r.message}
    assert len(logged) == len(found)
    for file, reason in found.items():
        assert sum(f"{file} cannot be read: {reason}" in line for line in logged) == 1
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_training_stops_above_the_limit_and_lists_all(damaged, tmp_path):
    opts = ("DATALOADER.MAX_UNREADABLE_IMAGES", 2, "DATALOADER.NUM_WORKERS", 1)
    trainer = Trainer(setup(run_config(damaged, tmp_path / "out", *opts)))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with pytest.raises(DatasetError, match="MAX_UNREADABLE_IMAGES is 2") as error:
        trainer.train()
    listed = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    assert len(listed) >= 3
    assert all(str(damaged / "train") in line for line in listed)
    if trainer.iter == 0:  # the batch that was one too many has taught nothing
        for key, value in trainer.model.state_dict().items():
            assert torch.equal(value, before[key])


def test_an_evaluation_counts_them_as_images_without_predictions(
    damaged, shapes, tmp_path, monkeypatch, caplog
):
    opts = ("MODEL.SOLO.SCORE_THRESH_TEST", 0.001, "MODEL.SOLO.KEEP_THRESH_TEST", 0.0)
    opts += ("DATALOADER.NUM_WORKERS", 1)
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    with restored():
        made = Trainer.build_model(setup(run_config(shapes, tmp_path / "made", *opts)))
    torch.save({"model": made.state_dict()}, weights)
    opts += ("MODEL.WEIGHTS", weights)

    with restored():
        cfg = setup(run_config(damaged, tmp_path / "found", *opts))
        logging.getLogger("solo_d2").propagate = True
        found = evaluate(cfg)
        records = DatasetCatalog.get("custom_val")
    assert "2 images could not be read" in caplog.text
    assert caplog.text.count("it counts as an image without predictions") == 2
    file = tmp_path / "found/inference/custom_val/coco_instances_results.json"
    ids = {result["image_id"] for result in json.loads(file.read_text())}
    good, bad = ({x["image_id"] for x in part} for part in (records[:-2], records[-2:]))
    assert ids <= good
    assert len(ids) > 1
    infer = SOLO.postprocess

    def infer_of_good_ones(self, batched_inputs, *arguments):
        outputs = infer(self, batched_inputs, *arguments)
        for sample, output in zip(batched_inputs, outputs, strict=True):
            if sample["image_id"] in bad:
                output["instances"] = output["instances"][:0]
        return outputs

    monkeypatch.setattr(SOLO, "postprocess", infer_of_good_ones)
    expected = evaluate(setup(run_config(shapes, tmp_path / "expected", *opts)))
    assert found["segm"] == pytest.approx(expected["segm"], nan_ok=True)
