"""Names and ids of classes and of stuff, from metadata, a json or none."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.api.classes import Classes, find_classes, find_stuff
from tests.api.models import NUM_LABELS, make_cfg, panoptic_cfg

pytestmark = pytest.mark.detectron2


def test_classes_of_a_coco_format_folder_that_was_never_loaded(tmp_path):
    json_file = tmp_path / "a.json"
    categories = [{"id": 30, "name": "late"}, {"id": 4, "name": "early"}]
    json_file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    cfg = make_cfg()
    cfg.MODEL.SOLO.NUM_CLASSES = 2
    cfg.DATASETS.COCO_FORMAT = [["demo_folder", str(json_file), str(tmp_path)]]
    cfg.DATASETS.TEST = ("demo_folder",)
    try:
        classes = find_classes(cfg)
        assert (classes.names, classes.json_ids) == (["early", "late"], [4, 30])
        json_file.unlink()
        classes = find_classes(cfg)
    finally:
        DatasetCatalog.remove("demo_folder")
        MetadataCatalog.remove("demo_folder")
    assert (classes.names, classes.json_ids) == (["class 0", "class 1"], [0, 1])


def test_classes_of_another_number_are_not_used():
    cfg = make_cfg()
    assert find_classes(cfg).names[0] == "disc"
    cfg.MODEL.SOLO.NUM_CLASSES = 3
    assert find_classes(cfg).names == ["class 0", "class 1", "class 2"]


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
    assert stuff == Classes(["things", "stuff 1", "stuff 2", "stuff 3"], [9, 10, 11, 12])
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    assert find_stuff(cfg, things) is None
