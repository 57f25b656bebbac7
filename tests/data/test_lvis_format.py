"""LVIS's files: as Detectron2 loads them with the package lvis, but without it."""

import copy
import json
import sys
import types
from collections import Counter, defaultdict

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json, register_lvis_instances

from solo_d2.config import load_config
from solo_d2.data import check_datasets, register_datasets_of_config
from solo_d2.data.entries import read_entries
from solo_d2.data.own_loaders import use_own_loaders
from solo_d2.engine.training_data import build_train_loader
from solo_d2.evaluation.lvis_results import FastLVISEvaluator
from solo_d2.utils.errors import DatasetError
from tests.json_damage import changed, gone, put
from tests.pictures import picture, save

pytestmark = pytest.mark.detectron2

NAME = "test_lvis_v1"
CLASSES = ["aerosol_can", "alligator", "almond"]


def content():
    square = [4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]
    common = {"bbox": [4.0, 4.0, 16.0, 16.0], "area": 256.0, "segmentation": [square]}
    images = [
        {
            **{"id": key, "height": 40, "width": 60, "neg_category_ids": [1, 3]},
            "coco_url": f"http://images.cocodataset.org/{split}2017/{key:012}.jpg",
            "not_exhaustive_category_ids": [2] * (key == 5),
        }
        for key, split in ((9, "val"), (5, "train"), (7, "train"))
    ]
    annotations = [
        {"id": key, "image_id": image, "category_id": category, **copy.deepcopy(common)}
        for key, image, category in ((1, 5, 3), (2, 9, 1), (3, 5, 1), (4, 7, 1))
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


class FakeLVIS:
    """What Detectron2's loader uses of lvis.LVIS."""

    def __init__(self, json_file):
        with open(json_file) as file:
            data = json.load(file)
        self.imgs = {image["id"]: image for image in data["images"]}
        self.img_ann_map = defaultdict(list)
        for annotation in data["annotations"]:
            self.img_ann_map[annotation["image_id"]].append(annotation)

    def load_imgs(self, ids):
        return [self.imgs[key] for key in ids]


@pytest.fixture
def write(tmp_path):
    """Register the data set, and write its files: `write(content)`."""
    for name in ("train2017/000000000005", "train2017/000000000007", "val2017/000000000009"):
        save(tmp_path / f"coco/{name}.jpg", picture(40, 60))
    file = tmp_path / "lvis.json"
    classes = {"thing_classes": list(CLASSES)}
    register_lvis_instances(NAME, classes, str(file), f"{tmp_path / 'coco'}/")
    return lambda data: file.write_text(json.dumps(data)) and str(file)


def load():
    use_own_loaders([NAME])
    return DatasetCatalog.get(NAME)


def test_equals_detectron2_with_the_package(write, tmp_path, monkeypatch):
    file = write(content())
    monkeypatch.setitem(sys.modules, "lvis", types.SimpleNamespace(LVIS=FakeLVIS))
    expected = load_lvis_json(file, f"{tmp_path / 'coco'}/")
    monkeypatch.setitem(sys.modules, "lvis", None)  # an import of it fails
    found = load()
    for record in found:
        for annotation in record["annotations"]:
            assert annotation.pop("iscrowd") == 0
            assert annotation.pop("id") in (1, 2, 3, 4)
    assert found == expected
    problems = []
    assert read_entries(NAME, problems.append) == (load(), CLASSES)
    assert [problem.kind for problem in problems] == ["classes without annotations"]
    assert [record["image_id"] for record in found] == [5, 7, 9]
    assert found[0]["file_name"] == str(tmp_path / "coco/train2017/000000000005.jpg")


def register_by_config():
    cfg = load_config("configs/lvis/solov2_R50_v1_3x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), ()
    register_datasets_of_config(cfg)


@pytest.mark.parametrize(
    "through",
    [lambda: use_own_loaders([NAME]), lambda: check_datasets([NAME]), register_by_config],
)
def test_the_catalog_loads_without_the_package(write, monkeypatch, through):
    write(content())
    monkeypatch.setitem(sys.modules, "lvis", None)  # an import of it fails
    with pytest.raises(ImportError):
        DatasetCatalog.get(NAME)
    through()
    through()
    assert len(DatasetCatalog.get(NAME)) == 3


def test_a_loader_of_ones_own_is_left_alone():
    DatasetCatalog.register("test_lvis_mine", list)
    MetadataCatalog.get("test_lvis_mine").evaluator_type = "lvis"
    use_own_loaders(["test_lvis_mine", "test_unknown"])
    assert DatasetCatalog["test_lvis_mine"] is list


LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
MORE = {"id": 4, "name": "ambulance"}
REFUSED = {
    "image with an invalid 'file_name'": [
        gone("images", 1, "coco_url"),
        *(put("images", 1, "coco_url", value=value) for value in (None, 3, "none")),
    ],
    "other categories than expected": [gone("categories", 2), put("categories", 2, value=MORE)],
    **{
        f"image with an invalid '{key}'": [
            put("images", 1, key, value=value) for value in (None, 3, "1", [None], [[1]], [True])
        ]
        for key in LISTS
    },
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_loading_and_check(write, kind):
    for change in REFUSED[kind]:
        file, problems = write(changed(content(), [change])), []
        read_entries(NAME, problems.append)
        found = next(problem for problem in problems if problem.kind == kind)
        with pytest.raises(DatasetError) as caught:
            load()
        assert str(caught.value) == f"{file}: {found}"


@pytest.mark.parametrize("key", LISTS)
def test_lists_of_categories_may_be_missing(write, key):
    write(changed(content(), [gone("images", 1, key)]))
    assert load()[0][key] == []


def test_evaluation_takes_what_training_takes(write):
    data = content()
    first, second, third, _ = data["annotations"]
    del first["bbox"], first["area"]
    second.update(bbox=[0, 0, "a", 1], area=float("nan"))
    second["segmentation"].append([])
    third["segmentation"] = [[1, 1, 2, 2]]
    write(data)
    objects = FastLVISEvaluator(NAME, None)._coco_api.dataset["annotations"]
    loaded = [item["segmentation"] for r in load() for item in r["annotations"]]
    assert len(objects) == len(loaded) == 3
    for item in objects:
        assert item["bbox"] == [4, 4, 16, 16]
        assert item["area"] == 256
        assert item["segmentation"] in loaded


def test_configs_sample_rare_classes_more_often(write):
    data = content()
    # 39 more images of class 1; the classes of image 5 are in one image of 42.
    for key in range(100, 139):
        data["images"].append({**data["images"][2], "id": key})
        data["annotations"].append({**data["annotations"][3], "id": key, "image_id": key})
    write(data)
    check_datasets([NAME])
    cfg = load_config("configs/lvis/solov2_R50_v1_3x.yaml")
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5  # sqrt(0.5 / (1 / 42)) = 4.58 repeats
    cfg.SEED = 1
    loader = build_train_loader(cfg, lambda record: record["image_id"])
    seen = Counter(key for batch, _ in zip(loader, range(25), strict=False) for key in batch)
    usual = (sum(seen.values()) - seen[5]) / 41
    assert 3.5 < seen[5] / usual < 5.7
