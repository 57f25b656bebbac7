"""Data sets in COCO format: as Detectron2 loads them, and clear errors for bad files."""

import copy
import json
import logging
import re

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.evaluation import COCOEvaluator
from pycocotools import mask as coco_mask

from solo_d2.data import load_coco_format, register_coco_format
from solo_d2.data.coco_json import read_sorted_categories
from solo_d2.data.segmentations import clean_segmentation, decode_counts
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.json_damage import changed, gone, put

pytestmark = pytest.mark.detectron2

SQUARE = [4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]


def rle_of(top, left, bottom, right, shape=(40, 60)):
    mask = np.zeros(shape, np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(shape), "counts": rle["counts"].decode()}


def annotation(key, segmentation, image=7, category=18, **others):
    fields = {"id": key, "image_id": image, "category_id": category, "iscrowd": 0, "area": 256.0}
    return {**fields, "bbox": [4.0, 4.0, 16.0, 16.0], "segmentation": segmentation, **others}


def good_content():
    return {
        "info": {"description": "two of three images have objects"},
        "images": [
            {"id": 9, "file_name": "b.png", "height": 40, "width": 60},
            {"id": 7, "file_name": "sub/a.png", "height": 40, "width": 60},
            {"id": 8, "file_name": "c.png", "height": 40, "width": 60},
        ],
        "annotations": [
            annotation(1, [SQUARE]),
            annotation(2, [SQUARE, [30, 30, 35, 30, 35, 35]], category=3),
            annotation(3, rle_of(2, 3, 10, 20), image=9, iscrowd=1),
            annotation(4, {"size": [40, 60], "counts": [100, 30, 2270]}, image=9),
            annotation(5, [SQUARE], image=9, keypoints=[5, 6, 2, 0, 0, 0]),
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }


@pytest.fixture
def dataset(tmp_path):
    """Write a json and load it: `dataset(content)`."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("sub/a.png", "b.png", "c.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((40, 60, 3), np.uint8))

    def load(content, name="test_coco_format"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "a.json").write_text(text)
        return load_coco_format(name, tmp_path / "a.json", tmp_path / "images")

    load.root = tmp_path
    return load


def by_key(records):
    return [
        {**record, "annotations": [dict(sorted(a.items())) for a in record["annotations"]]}
        for record in records
    ]


def test_equals_detectron2_on_a_good_file(dataset):
    found = dataset(good_content())
    expected = load_coco_json(
        str(dataset.root / "a.json"), str(dataset.root / "images"), "test_theirs", ["id"]
    )
    assert by_key(found) == by_key(expected)
    ours, theirs = (MetadataCatalog.get(name) for name in ("test_coco_format", "test_theirs"))
    assert ours.thing_classes == theirs.thing_classes == ["car", "dog"]
    assert ours.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id


def test_class_names_are_those_of_the_loader(dataset):
    content = good_content()
    dataset(content)
    expected = ["car", "dog"]
    assert [x["name"] for x in read_sorted_categories(dataset.root / "a.json")] == expected
    content["info"]["categories"] = []  # the word twice: parsed in full
    dataset(content)
    assert [x["name"] for x in read_sorted_categories(dataset.root / "a.json")] == expected


@pytest.mark.parametrize("text", ["", "{", '{"images": [', "\x00" * 40, "[" * 200_000])
def test_not_json(dataset, text):
    with pytest.raises(DatasetError, match=r"a\.json is not valid JSON"):
        dataset(text)


def test_missing_json_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    with pytest.raises(DatasetError) as caught:
        load_coco_format("mine", tmp_path / "none.json", tmp_path)
    for part in ("'mine'", str(tmp_path / "none.json"), "DETECTRON2_DATASETS is '/some/where'"):
        assert part in str(caught.value)


def test_missing_image_folder(dataset):
    (dataset.root / "images").rename(dataset.root / "elsewhere")
    with pytest.raises(DatasetError, match=f"looked for {dataset.root}/images"):
        dataset(good_content())


NOTHING = {"one point": [[1, 1]], "no polygon": [], "empty RLE": rle_of(5, 5, 5, 5)}


def test_annotations_that_cover_nothing_are_left_out_with_one_warning(dataset, caplog):
    content = good_content()
    for key, segmentation in enumerate(NOTHING.values(), start=100):
        content["annotations"].append(annotation(key, segmentation))
    with caplog.at_level(logging.WARNING):
        records = dataset(content)
    (warning,) = [text for text in caplog.messages if "cover nothing" in text]
    assert re.search(
        r"a\.json: 3 of 8 \(37\.5%\) .*1 x there is a box but no mask.*: annotation 100, ",
        warning,
    )
    assert by_key(records) == by_key(dataset(good_content()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"segmentation": [[1, 1, 5, 5], SQUARE]}, "1 of 6 (16.7%) annotations have polygons"),
        ({"segmentation": [[v + 500 for v in SQUARE]]}, "1 of 6 (16.7%) annotations lie outside"),
        ({}, "3 of 6 (50.0%) annotations have the class and box of another"),
    ],
    ids=["a part that covers nothing", "outside the image", "annotated twice"],
)
def test_what_training_leaves_out_or_sees_twice_is_counted(dataset, caplog, change, text):
    content = good_content()
    content["annotations"].append({**content["annotations"][0], "id": 50, **change})
    dataset(content)
    (warning,) = [message for message in caplog.messages if text in message]
    assert "annotation 50" in warning


def test_only_the_bad_polygons_of_an_annotation_are_dropped(dataset):
    content = good_content()
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 5], SQUARE]
    assert dataset(content)[0]["annotations"][0]["segmentation"] == [SQUARE]


@pytest.mark.parametrize("segmentation", [[SQUARE], rle_of(4, 4, 20, 20)])
def test_a_box_without_a_size_is_computed(dataset, segmentation):
    content = good_content()
    content["annotations"][0] = annotation(1, segmentation, bbox=[1, 2, 0, 4])
    assert dataset(content)[0]["annotations"][0]["bbox"] == [4, 4, 16, 16]


@pytest.mark.parametrize(
    "change",
    [
        gone("annotations", 0, "iscrowd"),
        gone("annotations", 1, "area"),
        put("annotations", 0, "segmentation", value=[[], SQUARE]),
        put("annotations", 5, value=annotation(50, NOTHING["one point"])),
    ],
)
def test_a_file_that_pycocotools_cannot_evaluate_is_evaluated_as_loaded(dataset, tmp_path, change):
    content = good_content()
    content["annotations"].append(annotation(6, [SQUARE]))
    name = "test_evaluated"
    dataset(changed(content, [change]), name)
    register_coco_format(name, tmp_path / "a.json", tmp_path / "images")
    num_objects = sum(len(record["annotations"]) for record in DatasetCatalog.get(name))
    assert num_objects == 5 + (change[0][1] != 5)
    assert MetadataCatalog.get(name).get("json_file") is None
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"), distributed=False)
    evaluator.reset()
    for image in DatasetCatalog.get(name):
        evaluator.process([image], [{}])
    assert len(evaluator._coco_api.anns) == num_objects
    # and the config may be read again
    register_coco_format(name, tmp_path / "a.json", tmp_path / "images")


def test_registering_again(tmp_path):
    register_coco_format("test_again", tmp_path / "a.json", tmp_path)
    register_coco_format("test_again", str(tmp_path / "a.json"), str(tmp_path))
    with pytest.raises(ConfigError, match=r"'test_again' is taken: its image_root .*/other"):
        register_coco_format("test_again", tmp_path / "a.json", tmp_path / "other")
    with pytest.raises(ConfigError, match="'coco_2017_val' is taken"):
        register_coco_format("coco_2017_val", tmp_path / "a.json", tmp_path)


def test_decode_counts_equals_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = tuple(rng.integers(1, 200, 2))
        mask = np.asfortranarray(rng.random(shape) < rng.choice([0.0, 0.01, 0.5, 1.0]), np.uint8)
        runs = decode_counts(coco_mask.encode(mask)["counts"])
        values = np.repeat(np.arange(len(runs)) % 2, runs)
        assert np.array_equal(values.reshape(shape[::-1]).T, mask)


def test_damaged_counts_never_reach_pycocotools():
    rng = np.random.default_rng(1)
    good = rle_of(3, 4, 30, 50)["counts"]
    for _ in range(500):
        text = list(good)
        for place in rng.integers(len(text), size=rng.integers(1, 4)):
            text[place] = chr(rng.integers(32, 127))
        try:
            clean = clean_segmentation({"size": [40, 60], "counts": "".join(text)}, 40, 60)
        except ValueError:
            continue
        assert clean is None or coco_mask.decode(copy.deepcopy(clean)).shape == (40, 60)
