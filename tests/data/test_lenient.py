"""What pycocotools and Detectron2 read is read alike, and so is what can only mean one thing."""

import contextlib
import copy
import io
import json
import logging
import math
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.lvis import register_lvis_instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from solo_d2.data import load_coco_format, register_coco_format
from solo_d2.data.coco_json import load_json, read_sorted_categories
from solo_d2.data.entries import read_entries
from solo_d2.data.image_folder import ImageFolder
from solo_d2.data.panoptic_json import read_panoptic_json
from solo_d2.data.problems import ERROR
from solo_d2.data.segmentations import to_rle
from solo_d2.evaluation.coco_results import FastCOCOEvaluator
from solo_d2.evaluation.lvis_results import FastLVISEvaluator
from solo_d2.utils.errors import DatasetError
from tests import panoptic_files
from tests.evaluation.made_up import rectangles
from tests.json_damage import (
    HEIGHT,
    SQUARE,
    WIDTH,
    changed,
    coco_content,
    gone,
    lvis_content,
    put,
    twice,
)

pytestmark = pytest.mark.detectron2

NAME = "test_lenient"
IMAGE, POLYGONS, RLE, RUNS = ("images", 0), *(("annotations", index) for index in range(3))
SEGMENTATION, COUNTS = (*POLYGONS, "segmentation"), (*RUNS, "segmentation", "counts")


def of_image(key):
    """The id of the first image, also in its annotations."""
    places = (("images", 0, "id"), *(("annotations", index, "image_id") for index in (0, 3)))
    return [put(*place, value=key) for place in places]


def of_categories(first, second):
    keys = {0: first, 1: second, 2: first, 3: second}
    return [
        *(put("categories", index, "id", value=key) for index, key in enumerate((first, second))),
        *(put("annotations", index, "category_id", value=key) for index, key in keys.items()),
    ]


# Detectron2 and pycocotools read it, so must we.
READ = {
    "as it is": [],
    "category_id is a float": [put(*POLYGONS, "category_id", value=3.0)],
    "all category ids are floats": of_categories(3.0, 5.0),
    "category ids are texts": of_categories("a", "b"),
    "category ids are 0 and large": of_categories(0, 2**70),
    "name of a category is a number": [put("categories", 0, "name", value=7)],
    "names of categories are equal": [put("categories", 0, "name", value="dog")],
    "iscrowd is 1.0": [put(*POLYGONS, "iscrowd", value=1.0)],
    "iscrowd is true": [put(*POLYGONS, "iscrowd", value=True)],
    "iscrowd is not there": [gone(*POLYGONS, "iscrowd")],
    "image_id is a float": [put(*POLYGONS, "image_id", value=1.0)],
    "ids of images are texts": [*of_image("x"), put("images", 1, "id", value="y"),
        *(put("annotations", index, "image_id", value="y") for index in (1, 2))],
    "id of an image is large": of_image(2**70),
    "height is a float": [put(*IMAGE, "height", value=float(HEIGHT))],
    "height is in scientific notation": [put(*IMAGE, "height", value=2e1)],
    "id of an annotation is a float": [put(*POLYGONS, "id", value=1.0)],
    "id of an annotation is a text": [put(*POLYGONS, "id", value="3f-a")],
    "id of an annotation is large": [put(*POLYGONS, "id", value=2**70)],
    "area is not there": [gone(*POLYGONS, "area")],
    "area is NaN": [put(*POLYGONS, "area", value=math.nan)],
    "info is not there": [gone("info")],
    "annotations are not there": [gone("annotations")],
    "an annotation of another image": [put(*POLYGONS, "image_id", value=77)],
    "an image is listed twice": [twice(*IMAGE)],
    "polygon of texts": [put(*SEGMENTATION, value=[[str(value) for value in SQUARE]])],
    "polygon that reaches far": [put(*SEGMENTATION, value=[[-1e4, 3, 1e4, 3, 1e4, 9, -1e4, 9]])],
    "polygon under three points": [put(*SEGMENTATION, value=[[1, 1, 5, 5], SQUARE])],
    "counts are floats": [put(*COUNTS, value=[100.0, 30.0, 470.0])],
    "counts are texts": [put(*COUNTS, value=["100", "30", "470"])],
    "size is of floats": [put(*RLE, "segmentation", "size", value=[20.0, 30.0])],
    "more keys": [put(*RLE, "segmentation", "more", value=1), put(*IMAGE, "more", value=None)],
    "keypoints of another number": [put(*POLYGONS, "keypoints", value=[1, 2])],
    "keypoints are null": [put(*POLYGONS, "keypoints", value=None)],
    "ignore is 0.0": [put(*POLYGONS, "ignore", value=0.0)],
    "name of an image is absolute": [put(*IMAGE, "file_name", value="FOLDER/a.png")],
    "name of an image goes out and in": [put(*IMAGE, "file_name", value="../images/a.png")],
}  # fmt: skip
# One of both does not, though it can only mean one thing.
MEANT = {
    "bbox is not there": [gone(*POLYGONS, "bbox")],
    "bbox is null": [put(*POLYGONS, "bbox", value=None)],
    "ignore is null": [put(*POLYGONS, "ignore", value=None)],
    "a category is listed twice": [twice("categories", 0)],
    "backslashes": [put(*IMAGE, "file_name", value=".\\a.png")],
    "percent codes": [put(*IMAGE, "file_name", value="%61.png")],
}
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lenient")
    (folder / "images").mkdir()
    for name in "ab":
        cv2.imwrite(str(folder / "images" / f"{name}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return folder


@pytest.fixture
def write(folder):
    """Write a json; its name."""

    def run(content, encoding="utf-8"):
        text = json.dumps(content).replace("FOLDER", str(folder / "images"))
        (folder / "a.json").write_text(text, encoding=encoding)
        return folder / "a.json"

    return run


def theirs(file, images):
    """Areas of the masks that Detectron2 trains on, by image."""
    kind = {"use_instance_mask": True, "instance_mask_format": "bitmask"}
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR", **kind)
    areas = []
    for record in load_coco_json(str(file), str(images), f"{NAME}_theirs"):
        instances = mapper(copy.deepcopy(record))["instances"]
        masks = instances.gt_masks.tensor if instances.has("gt_masks") else ()
        areas.append([int(mask.sum()) for mask in masks])
    return areas


def ours(records):
    return [
        [
            int(coco_mask.area(to_rle(item["segmentation"], HEIGHT, WIDTH)))
            for item in record["annotations"]
            if not item["iscrowd"]
        ]
        for record in records
    ]


def check_and_load(file, images):
    """What is loaded; the check finds no error and the same."""
    register_coco_format(NAME, file, images)
    problems = []
    checked = read_entries(NAME, problems.append)[0]
    assert not [str(problem) for problem in problems if problem.severity == ERROR]
    records = load_coco_format(NAME, file, images)
    assert records == checked
    return records


def evaluate(records):
    """AP of masks when all objects are found."""
    evaluator = FastCOCOEvaluator(NAME, None)
    evaluator.reset()
    for record in records:
        items = [item for item in record["annotations"] if not item["iscrowd"]]
        rles = [to_rle(item["segmentation"], HEIGHT, WIDTH) for item in items]
        masks = np.array([coco_mask.decode(rle) for rle in rles]).reshape(-1, HEIGHT, WIDTH) > 0
        classes = [item["category_id"] for item in items]
        found = rectangles((HEIGHT, WIDTH), *[(0, 0, 0, 0)] * len(items), classes=classes)
        found.pred_masks = torch.tensor(masks)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["segm"]["AP"]


@pytest.mark.parametrize("case", READ)
def test_reads_what_pycocotools_and_detectron2_read(write, folder, case):
    file, images = write(changed(coco_content(), READ[case])), folder / "images"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        if "under three points" not in case:  # Detectron2 drops them
            items = [item for image in coco.imgs for item in coco.imgToAnns[image]]
            assert all(coco.annToMask(item).any() for item in items)
    records = check_and_load(file, images)
    assert ours(records) == theirs(file, images)
    names = MetadataCatalog.get(f"{NAME}_theirs").thing_classes
    assert MetadataCatalog.get(NAME).thing_classes == list(map(str, names))
    if coco.anns:
        assert evaluate(records) == pytest.approx(100)


@pytest.mark.parametrize(
    ("case", "encoding"),
    [*((case, "utf-8") for case in MEANT), *((None, encoding) for encoding in ENCODINGS)],
)
def test_reads_what_can_only_mean_one_thing(write, folder, case, encoding):
    file = write(changed(coco_content(), MEANT.get(case, [])), encoding)
    records = check_and_load(file, folder / "images")
    assert ours(records) == [[66], [48, 30]]
    assert MetadataCatalog.get(NAME).thing_classes == ["cat", "dog"]
    assert [category["id"] for category in read_sorted_categories(file)] == [3, 5]
    assert evaluate(records) == pytest.approx(100)


def test_lvis_files_are_read_alike(folder, write):
    content = lvis_content()
    for image in content["images"]:
        image["coco_url"] = f"x/images/{image['coco_url'].split('/')[-1]}"
        image["neg_category_ids"] = [1.0]
    content["annotations"][0]["category_id"] = 1.0
    file = write(content, "utf-8-sig")
    register_lvis_instances(NAME, {"thing_classes": ["cat", "dog"]}, str(file), str(folder))
    MetadataCatalog.get(NAME).set(json_file=str(file), evaluator_type="lvis")
    evaluator = FastLVISEvaluator(NAME, None)
    truth = evaluator._coco_api.dataset["annotations"]
    assert {item["category_id"] for item in truth} == {1, 2}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\x1f\x8b\x08abc", "gzip"),
        ('{"images": "caf\xe9"}'.encode("latin-1"), "utf-8"),
        (b'{"images": 1}\n{"images": 2}', "JSON Lines"),
        *((text, r"b\.json is not valid JSON") for text in (b"", b'{"images": [', b"[" * 200_000)),
    ],
)
def test_other_files_are_refused_with_their_cause(folder, data, cause):
    (folder / "b.json").write_bytes(data)
    with pytest.raises(DatasetError, match=cause):
        load_coco_format(NAME, folder / "b.json", folder / "images")


def test_unusual_values_are_logged_once_and_counted(write, folder, caplog):
    content = changed(coco_content(), [*of_categories(3.0, 5.0), *MEANT["backslashes"]])
    file = write(content, "utf-8-sig")
    shutil.copy(file, folder / "once.json")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_coco_format(NAME, folder / "once.json", folder / "images")
    lines = [record.getMessage() for record in caplog.records if "once.json" in record.getMessage()]
    assert sorted(line.split(" ")[1] for line in lines) == ["has", "has", "is"]
    assert any("'category_id'" in line and "4 times" in line for line in lines)


NAMES = {
    "my photo.jpg": "my photo.jpg",
    "my%20photo.jpg": "my photo.jpg",
    "sub\\x.jpg": "sub/x.jpg",
    "sub%5Cmy%20x.jpg": None,
    ".\\sub\\100%25.jpg": "sub/100%.jpg",
    "a%20b.jpg": "a%20b.jpg",
    unicodedata.normalize("NFC", "é.jpg"): unicodedata.normalize("NFD", "é.jpg"),
    "..\\outside.jpg": None,
    "%2e%2e/outside.jpg": None,
    "../outside.jpg": None,
    "X.jpg": None,
}


def test_names_of_files(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    there = ["my photo.jpg", "sub/x.jpg", "sub/100%.jpg", "a%20b.jpg", "a b.jpg", "x.jpg"]
    for name in [*there, unicodedata.normalize("NFD", "é.jpg"), "../outside.jpg"]:
        (root / name).touch()
    folder = ImageFolder(root)
    for name, expected in NAMES.items():
        found = folder.find(name)
        assert (found is None) == (expected is None), name
        assert found is None or root.joinpath(found).samefile(root / expected), name
    assert "'x.jpg'" in folder.hint("X.jpg")
    assert "'x.jpg'" in folder.hint("train\\x.jpg")
    assert "'x.jpg' exists: the extension" in folder.hint("X.png")
    assert "'x.jpg' exists: the extension" in folder.hint("x")
    assert folder.hint("none.jpg") == ""


def test_panoptic_files_are_read_alike(tmp_path):
    root = panoptic_files.write(tmp_path / "data")
    expected = read_panoptic_json(root / "panoptic.json")
    content = json.loads((root / "panoptic.json").read_text())
    for category in content["categories"]:
        category |= {"id": float(category["id"]), "isthing": float(category["isthing"])}
        category["color"] = "#ff0000"
    for image in content["images"]:
        image |= {"id": float(image["id"]), "height": float(image["height"])}
    for annotation in content["annotations"]:
        annotation["image_id"] = float(annotation["image_id"])
        annotation["file_name"] = f".\\{annotation['file_name']}"
        for segment in annotation["segments_info"]:
            for key in ("id", "category_id", "iscrowd"):
                segment[key] = float(segment.get(key, 0))
    (root / "panoptic.json").write_text(json.dumps(content), encoding="utf-8-sig")
    found = read_panoptic_json(root / "panoptic.json", "", root / "panoptic")
    for key, annotation in expected.annotations.items():
        assert found.annotations[key]["file_name"] == annotation["file_name"]
        assert found.annotations[key]["segments_info"] == annotation["segments_info"]
    assert found.categories.thing_ids == expected.categories.thing_ids
    assert "thing_colors" not in found.categories.metadata()


def test_configs_and_predictions_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.yaml").write_text("VERSION: 2\nSEED: 5\n", encoding="utf-8-sig")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert cfg.SEED == 5
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8-sig")
    assert load_json(tmp_path / "a.json") == [1]
