"""Names and ids of classes and of stuff, from metadata, a json or none."""

import json
import os

import pytest
import torch
from detectron2.data import DatasetCatalog

from solo_d2 import ConfigError, Predictor
from solo_d2.api.classes import Classes, find_classes, find_stuff
from solo_d2.api.loading import complete_config, make_config
from solo_d2.config import load_config
from solo_d2.data.classes import make_categories
from solo_d2.data.coco_format import register_coco_format
from tests.api.models import NUM_LABELS, make_cfg, panoptic_cfg, picture, save_model

pytestmark = pytest.mark.detectron2


def write_json(folder, names):
    """Write a COCO json of classes by their ids; returns its name."""
    categories = [{"id": number, "name": name} for number, name in names.items()]
    content = {"images": [], "annotations": [], "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "a.json")


def test_classes_of_a_coco_format_folder_that_was_never_loaded(tmp_path):
    json_file = write_json(tmp_path, {30: "late", 4: "early"})
    cfg = make_cfg()
    cfg.MODEL.SOLO.NUM_CLASSES = 2
    cfg.DATASETS.COCO_FORMAT = [["demo_folder", json_file, str(tmp_path)]]
    cfg.DATASETS.TEST = ("demo_folder",)
    classes = find_classes(cfg)
    assert (classes.names, classes.json_ids) == (["early", "late"], [4, 30])
    os.unlink(json_file)
    classes = find_classes(cfg)
    assert (classes.names, classes.json_ids) == (["class 0", "class 1"], [0, 1])


def test_classes_of_another_number_are_not_used_and_unknown_ones_are_warned_of(caplog):
    cfg = make_cfg()
    assert find_classes(cfg).names[0] == "disc"
    assert caplog.records == []
    cfg.MODEL.SOLO.NUM_CLASSES = 3
    assert find_classes(cfg).names == ["class 0", "class 1", "class 2"]
    (record,) = caplog.records
    assert "category ids of the model's 3 classes are unknown" in record.getMessage()


def test_the_models_own_classes_come_before_a_data_sets(tmp_path):
    cfg = make_cfg()
    cfg.MODEL.SOLO.NUM_CLASSES = 2
    entry = ["demo_folder", write_json(tmp_path, {5: "other", 6: "names"}), str(tmp_path)]
    cfg.DATASETS.COCO_FORMAT, cfg.DATASETS.TEST = [entry], ("demo_folder",)
    cfg.MODEL.CLASSES = make_categories(["cat", "dog"], [7, 3])
    assert find_classes(cfg) == Classes(["cat", "dog"], [7, 3])
    assert "demo_folder" not in DatasetCatalog
    cfg.MODEL.SOLO.NUM_CLASSES = 3
    with pytest.raises(ConfigError, match=r"MODEL\.CLASSES has 2 things, .*NUM_CLASSES is 3"):
        find_classes(cfg)
    cfg.MODEL.CLASSES = [{"id": 1, "name": "cat"}]
    with pytest.raises(ConfigError, match=r"MODEL\.CLASSES is .*isthing"):
        find_classes(cfg)


def test_a_name_that_means_other_files_gives_no_names(tmp_path, caplog):
    cfg = make_cfg()
    cfg.MODEL.SOLO.NUM_CLASSES = 2
    cfg.DATASETS.TEST = ("demo_folder",)
    other = ["demo_folder", str(tmp_path / "gone.json"), str(tmp_path)]
    register_coco_format("demo_folder", write_json(tmp_path, {5: "other", 6: "names"}), tmp_path)
    cfg.DATASETS.COCO_FORMAT = [other]
    assert find_classes(cfg).names == ["class 0", "class 1"]
    assert "'demo_folder' is taken" in caplog.records[0].getMessage()


NAMES, IDS = list("abcdefg"), [2, 3, 5, 7, 11, 13, 17]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A panoptic model whose classes are in the checkpoint alone."""
    file = save_model(tmp_path_factory.mktemp("model"), panoptic=True)
    loaded = torch.load(file, weights_only=True)
    categories = make_categories(NAMES, IDS) + make_categories(
        ["sky", "sea", "dune"], [20, 30, 40], isthing=False
    )
    torch.save({**loaded, "classes": categories}, file)
    return file


def test_classes_come_from_the_checkpoint_wherever_data_and_working_folder_are(
    checkpoint, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    predictor = Predictor(checkpoint, device="cpu", score_thresh=0.0)
    assert predictor.classes == Classes(NAMES, IDS)  # not those of DATASETS.TEST, shapes_val
    assert predictor.stuff == Classes(["things", "sky", "sea", "dune"], [0, 20, 30, 40])
    result = predictor(picture())
    assert {entry["category_id"] for entry in result.to_coco()} <= set(IDS)
    segments = result.save_panoptic(tmp_path / "a.png")
    assert {segment["category_id"] for segment in segments} <= {*IDS, 20, 30, 40}
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_classes_of_the_checkpoint_win_over_the_config_and_the_command_line_over_both(
    checkpoint, caplog
):
    config = checkpoint.parent / "config.yaml"
    others = make_categories(list("tuvwxyz"), range(7))
    cfg = load_config(str(config))
    cfg.MODEL.CLASSES = others
    cfg.MODEL.SOLO.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 0
    cfg.TEST.AUG.ENABLED = True
    completed = complete_config(cfg, checkpoint)
    assert find_classes(completed).names == NAMES
    assert completed.MODEL.SOLO.NUM_CLASSES == 7
    assert completed.MODEL.SEM_SEG_HEAD.NUM_CLASSES == NUM_LABELS
    assert "MODEL.CLASSES has other classes" in caplog.text
    assert "TEST.AUG.ENABLED has no effect here" in caplog.text
    given = make_config(config, checkpoint, overrides=["MODEL.CLASSES", str(others)])
    assert find_classes(given).names == list("tuvwxyz")
    cfg.MODEL.SOLO.NUM_CLASSES = 3
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 3, but the weights .* 7 classes"):
        complete_config(cfg, checkpoint)


def test_names_of_stuff():
    cfg = panoptic_cfg()
    cfg.DATASETS.TEST = ("coco_2017_val_panoptic_separated",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    things = Classes(["a", "b"], [3, 9])
    stuff = find_stuff(cfg, things)
    assert stuff.names[:2] == ["things", "banner"]
    assert stuff.json_ids[:2] == [0, 92]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_LABELS  # another data set's
    stuff = find_stuff(cfg, things)
    assert stuff == Classes(["things", "stuff 1", "stuff 2", "stuff 3"], [0, 10, 11, 12])
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    assert find_stuff(cfg, things) is None
