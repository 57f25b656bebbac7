"""What the config's data set names mean: class counts and checks before training."""

import json
from functools import partial

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

import solo_d2.modeling  # noqa: F401  (registers the models)
from solo_d2.config import default_config
from solo_d2.data import check_datasets, register_datasets_of_config, resolve_num_classes
from solo_d2.utils.errors import ConfigError, DatasetError

pytestmark = pytest.mark.detectron2


def register(name, classes):
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).thing_classes = classes


def config(train=(), test=(), number=0, coco_format=()):
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    cfg.MODEL.SOLO.NUM_CLASSES = number
    cfg.DATASETS.COCO_FORMAT = list(coco_format)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    return cfg


@pytest.mark.parametrize(
    ("train", "test", "given", "expected"),
    [
        (["shapes_train"], ["shapes_val"], 0, 7),
        (["shapes_train"], [], 7, 7),
        ([], ["coco_2017_val"], 0, 80),
        ([], [], 3, 3),
        ([], [], 0, r"MODEL\.SOLO\.NUM_CLASSES is 0 and DATASETS\.TRAIN"),
        (["coco_2017_train"], [], 7, r"MODEL\.SOLO\.NUM_CLASSES is 7, .*'coco_2017_train' has 80"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_numbers_of_classes(train, test, given, expected, frozen):
    cfg = config(train, test, given)
    if frozen:
        cfg.freeze()
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            resolve_num_classes(cfg)
        assert given == cfg.MODEL.SOLO.NUM_CLASSES
    else:
        assert resolve_num_classes(cfg) == cfg.MODEL.SOLO.NUM_CLASSES == expected
    assert cfg.is_frozen() == frozen


def test_only_the_named_data_sets_count():
    assert resolve_num_classes(config(["test_absent"]), ["shapes_val"]) == 7


def test_different_classes_name_both_data_sets_and_what_is_missing():
    register("test_one", ["cat", "dog"])
    register("test_two", ["cat", "cow"])
    with pytest.raises(ConfigError) as caught:
        resolve_num_classes(config(["test_one"], ["test_two"]))
    for part in ("data set 'test_one' has 'dog'", "data set 'test_two' has 'cow'"):
        assert f"only {part}" in str(caught.value)
    register("test_three", ["dog", "cat"])
    with pytest.raises(ConfigError, match="the same classes in another order"):
        resolve_num_classes(config(["test_one", "test_three"]))


def test_no_categories_are_the_datas_fault():
    register("test_odd", [])
    for cfg in (config(["test_odd"]), config(["test_odd"], number=7)):
        with pytest.raises(DatasetError, match="test_odd") as error:
            resolve_num_classes(cfg)
        assert "NUM_CLASSES" not in str(error.value)
    DatasetCatalog.register("test_stuff", list)
    with pytest.raises(DatasetError, match="'test_stuff' has no thing_classes"):
        resolve_num_classes(config(["test_stuff"]))


def test_folders_named_by_the_config(tmp_path):
    categories = [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories}))
    entry = ["test_mine", str(tmp_path / "a.json"), str(tmp_path)]
    cfg = config(["test_mine"], coco_format=[entry])
    register_datasets_of_config(cfg)
    assert resolve_num_classes(cfg) == 2
    check_datasets(["test_mine"])
    cfg = config(coco_format=[["test_mine", str(tmp_path / "b.json"), str(tmp_path)]])
    with pytest.raises(ConfigError, match="'test_mine' is taken"):
        register_datasets_of_config(cfg)


@pytest.mark.parametrize("key", ["COCO_FORMAT", "COCO_PANOPTIC_FORMAT"])
@pytest.mark.parametrize("entry", ["test_mine", ["test_mine", "a"], ["test_mine", "a", 3, "b"]])
def test_entry_of_another_form(key, entry):
    cfg = config()
    cfg.DATASETS[key] = [entry]
    with pytest.raises(ConfigError, match=rf"DATASETS\.{key} must be a list of \[name"):
        register_datasets_of_config(cfg)


def test_unknown_name_gets_the_closest_names():
    with pytest.raises(
        DatasetError, match=r"'coco_2017_trian' is not .*coco_2017_train.*COCO_FORMAT"
    ):
        check_datasets(["coco_2017_trian"])
    with pytest.raises(DatasetError, match="'shapes' is not registered"):
        resolve_num_classes(config(["shapes"]))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("coco_2017_train", "coco/annotations/instances_{train,val}2017.json"),
        ("coco_2017_val_panoptic_separated", "coco/panoptic_stuff_{train,val}2017"),
        ("lvis_v1_train", "lvis/lvis_v1_{train,val}.json"),
        ("cityscapes_fine_instance_seg_train", "cityscapes/gtFine"),
    ],
)
def test_missing_files_of_a_built_in_data_set(name, layout, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        check_datasets([name])
    check_datasets(["shapes_train", "shapes_val"])  # made on first use
    for part in (f"'{name}' is missing: looked for /", f"'{tmp_path}'", layout):
        assert part in str(caught.value)


def test_errors_of_detectron2s_loaders_name_the_data_set(tmp_path):
    file = tmp_path / "no_annotations.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "categories": []}))
    DatasetCatalog.register("test_bad", partial(load_coco_json, str(file), str(tmp_path)))
    check_datasets(["test_bad"])
    check_datasets(["test_bad"])  # again
    with pytest.raises(DatasetError, match="'test_bad' cannot be loaded .* (Key|Assertion)Error"):
        DatasetCatalog.get("test_bad")
