"""The classes of data sets and models as categories, and the arguments that name data sets."""

import json
import logging
from argparse import Namespace

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

import solo_d2.modeling  # noqa: F401  (registers the models)
from solo_d2.config import default_config, load_config
from solo_d2.data.arguments import apply_dataset_arguments
from solo_d2.data.catalog import require_model_classes, training_categories
from solo_d2.data.classes import (
    dataset_categories,
    difference,
    is_category_list,
    make_categories,
    stuff,
    things,
)
from solo_d2.data.coco_format import register_coco_format
from solo_d2.utils.errors import ConfigError

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("name", "first", "last", "num_things", "num_stuff"),
    [
        ("coco_2017_val", (1, "person"), (90, "toothbrush"), 80, 0),
        ("coco_2017_val_panoptic_separated", (1, "person"), (200, "rug"), 80, 53),
        ("lvis_v1_val", (1, "aerosol_can"), (1203, "zucchini"), 1203, 0),
        ("cityscapes_fine_instance_seg_val", (24, "person"), (33, "bicycle"), 8, 0),
        ("shapes_val", (1, "disc"), (7, "crescent"), 7, 0),
        ("shapes_val_panoptic", (1, "disc"), (11, "brick"), 7, 4),
    ],
)
def test_built_in_data_sets_need_no_files(name, first, last, num_things, num_stuff):
    found = dataset_categories(name)
    assert is_category_list(found)
    assert (len(things(found)), len(stuff(found))) == (num_things, num_stuff)
    assert (found[0]["id"], found[0]["name"]) == first
    assert (found[-1]["id"], found[-1]["name"]) == last
    assert found[-1]["isthing"] == (num_stuff == 0)


def test_a_data_set_of_ones_own_code_is_numbered_as_it_is_evaluated():
    DatasetCatalog.register("test_code", list)
    MetadataCatalog.get("test_code").thing_classes = ["cat", "dog"]
    assert dataset_categories("test_code") == make_categories(["cat", "dog"], [0, 1])
    # Two category ids of one class.
    MetadataCatalog.get("test_code").thing_dataset_id_to_contiguous_id = {9: 1, 4: 0, 5: 0}
    assert dataset_categories("test_code") == make_categories(["cat", "dog"], [4, 9])


def test_ids_may_be_texts(tmp_path):
    categories = [{"id": "b", "name": "dog"}, {"id": "a", "name": "cat"}]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories}))
    register_coco_format("test_texts", tmp_path / "a.json", tmp_path)
    found = dataset_categories("test_texts")
    assert found == make_categories(["cat", "dog"], ["a", "b"])
    assert is_category_list(found)


def test_a_panoptic_model_has_stuff_and_others_do_not():
    cfg = default_config()
    assert training_categories(cfg) == []
    cfg.DATASETS.TRAIN = ("shapes_train_panoptic",)
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    assert len(training_categories(cfg)) == 7
    cfg.MODEL.META_ARCHITECTURE = "PanopticSOLO"
    assert len(training_categories(cfg)) == 11


def test_thousands_of_classes_are_read_from_a_saved_config(tmp_path):
    cfg = default_config()
    names = [f"class\u00e9 {number}" for number in range(1500)]
    cfg.MODEL.CLASSES = make_categories(names, range(1, 1501))
    text = cfg.dump(default_flow_style=None)
    assert yaml.safe_load(text)["MODEL"]["CLASSES"][0] == {
        "id": 1, "isthing": 1, "name": "class\u00e9 0"
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(text)
    read = load_config(str(tmp_path / "config.yaml"))
    assert read.MODEL.CLASSES == cfg.MODEL.CLASSES


def test_differences_name_what_is_missing_on_which_side():
    a = make_categories(["cat", "dog"], [1, 2]) + make_categories(["sky"], [3], isthing=False)
    assert difference(a, make_categories(["cat", "dog"], [5, 9]) + a[2:], "AB") == ""  # other ids
    b = make_categories(["cat", "sky"], [1, 3])
    assert difference(a, b, "AB") == "only A has 'dog', 'sky' (stuff); only B has 'sky'"
    assert difference(b[:1], a[:2], "AB") == "only B has 'dog'"
    # Two classes of one name.
    assert difference(b + b[:1], b, "AB") == "only A has 'cat'"
    turned = make_categories(["dog", "cat"], [1, 2])
    text = difference(a[:2], turned, "AB")
    assert text.startswith("the same classes in another order: 'cat' (id 1) of A")
    assert "'dog' (id 1) of B" in text


def test_a_data_set_of_other_classes_than_the_models_is_refused():
    cfg = default_config()
    require_model_classes(cfg, ["coco_2017_val"])  # unknown
    cfg.MODEL.CLASSES = make_categories(["disc", "oval"], [1, 2])
    with pytest.raises(ConfigError) as caught:
        require_model_classes(cfg, ["shapes_val"])
    for part in ("only the model has 'oval'", "only data set 'shapes_val' has 'square'"):
        assert part in str(caught.value)
    cfg.MODEL.CLASSES = dataset_categories("shapes_val_panoptic")  # of which things are compared
    require_model_classes(cfg, ["shapes_val"])
    cfg.MODEL.META_ARCHITECTURE = "PanopticSOLO"
    require_model_classes(cfg, ["shapes_val", "shapes_val_panoptic"])
    cfg.MODEL.CLASSES[-1] = {"id": 11, "isthing": 0, "name": "lava"}
    require_model_classes(cfg, ["shapes_val"])  # has no stuff
    with pytest.raises(ConfigError, match=r"only the model has 'lava' \(stuff\)"):
        require_model_classes(cfg, ["shapes_val_panoptic"])


# --- arguments that name data sets


SAVED = [["custom_train", "a.json", "a"], ["custom_val", "b.json", "b"], ["mine", "c.json", "c"]]
PANOPTIC = {"panoptic_json": "p.json", "panoptic_dir": "p", "images": "i"}
INSTANCES = {"json": "n.json", "images": "i"}


def applied(given, *, saved=SAVED, test=("custom_val",)):
    """The config after arguments {"train": {...}, "val": {...}}."""
    cfg = default_config()
    cfg.DATASETS.COCO_FORMAT = [list(entry) for entry in saved]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("custom_train",), test
    flat = {f"{split}_{kind}": v for split, kinds in given.items() for kind, v in kinds.items()}
    names = apply_dataset_arguments(cfg, Namespace(**flat))
    assert names == [f"custom_{split}" for split in given]
    return cfg.DATASETS


def test_data_of_the_command_line_replaces_that_of_a_saved_config():
    datasets = applied({"val": INSTANCES})
    assert datasets.COCO_FORMAT == [SAVED[0], SAVED[2], ["custom_val", "n.json", "i"]]
    datasets = applied({"train": INSTANCES, "val": PANOPTIC})
    assert datasets.COCO_FORMAT == [SAVED[2], ["custom_train", "n.json", "i"]]
    assert datasets.COCO_PANOPTIC_FORMAT == [["custom_val", "p.json", "p", "i"]]
    assert (datasets.TRAIN, datasets.TEST) == (("custom_train",), ("custom_val",))


def test_without_val_json_no_data_set_is_evaluated_that_the_user_did_not_name(caplog):
    with caplog.at_level(logging.WARNING):
        assert applied({"train": INSTANCES}, test=("custom_val", "mine")).TEST == (
            "custom_val",
            "mine",
        )
        assert caplog.records == []
        assert applied({"train": PANOPTIC}, saved=[], test=("shapes_val",)).TEST == ()
    (record,) = caplog.records
    assert "No --val-json is given: shapes_val" in record.getMessage()
    assert applied({}, test=("shapes_val",)).TEST == ("shapes_val",)
