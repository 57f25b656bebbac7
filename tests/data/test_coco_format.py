"""Data sets in COCO format: as Detectron2 loads them, and clear errors for bad files."""

import copy
import json
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
from tests.json_damage import HEIGHT, SQUARE, WIDTH, changed, coco_content, encoded, gone, put

pytestmark = pytest.mark.detectron2

NAME = "test_coco_format"
FIRST = ("annotations", 0)


@pytest.fixture
def dataset(tmp_path):
    """Write a json and load it: `dataset(content)`."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((HEIGHT, WIDTH, 3), np.uint8))

    def load(content, name=NAME):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "a.json").write_text(text)
        return load_coco_format(name, tmp_path / "a.json", tmp_path / "images")

    load.root = tmp_path
    return load


def added(*annotations):
    """The good content with copies of its first annotation, changed."""
    content = coco_content()
    first = content["annotations"][0]
    for key, others in enumerate(annotations, start=50):
        content["annotations"].append({**first, "id": key, **others})
    return content


def by_key(records):
    """With the keys of annotations in order."""
    return [
        {**r, "annotations": [dict(sorted(a.items())) for a in r["annotations"]]} for r in records
    ]


def test_equals_detectron2_on_a_good_file(dataset):
    content = added({"keypoints": [5, 6, 2, 0, 0, 0]})
    empty = {"id": 0, "file_name": "sub/c.png", "height": HEIGHT, "width": WIDTH}
    content["images"].append(empty)
    content["categories"].reverse()
    found = dataset(content)
    files = (str(dataset.root / name) for name in ("a.json", "images"))
    assert by_key(found) == by_key(load_coco_json(*files, "test_theirs", ["id"]))
    ours, theirs = (MetadataCatalog.get(name) for name in (NAME, "test_theirs"))
    assert ours.thing_classes == theirs.thing_classes == ["cat", "dog"]
    assert ours.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id


@pytest.mark.parametrize("info", [{}, {"categories": []}])  # the word twice: parsed in full
def test_class_names_are_those_of_the_loader(dataset, info):
    dataset({**coco_content(), "info": info})
    assert [x["name"] for x in read_sorted_categories(dataset.root / "a.json")] == ["cat", "dog"]


def test_missing_files_say_where_they_are_looked_for(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    with pytest.raises(DatasetError) as caught:
        load_coco_format("mine", tmp_path / "none.json", tmp_path)
    for part in ("'mine'", str(tmp_path / "none.json"), "DETECTRON2_DATASETS is '/some/where'"):
        assert part in str(caught.value)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=f"looked for {tmp_path}/images"):
        dataset(coco_content())


def test_annotations_that_cover_nothing_are_left_out_with_one_warning(dataset, caplog):
    nothing = ([[1, 1]], [], encoded(5, 5, 5, 5))
    records = dataset(added(*({"segmentation": segmentation} for segmentation in nothing)))
    (warning,) = [text for text in caplog.messages if "cover nothing" in text]
    expected = r"a\.json: 3 of 7 \(42\.9%\) .*1 x there is a box but no mask.*: annotation 50, "
    assert re.search(expected, warning)
    assert by_key(records) == by_key(dataset(coco_content()))


LEFT_OUT = {
    "have polygons": {"segmentation": [[1, 1, 5, 5], SQUARE]},
    "lie outside": {"segmentation": [[v + 500 for v in SQUARE]]},
    "have the class and box of another": {},
}


@pytest.mark.parametrize("text", LEFT_OUT)
def test_what_training_leaves_out_or_sees_twice_is_counted(dataset, caplog, text):
    last = dataset(added(LEFT_OUT[text]))[0]["annotations"][-1]
    (warning,) = [m for m in caplog.messages if f"1 of 5 (20.0%) annotations {text}" in m]
    assert "annotation 50" in warning
    if text == "have polygons":
        assert last["segmentation"] == [SQUARE]


@pytest.mark.parametrize("segmentation", [[SQUARE], encoded(3, 4, 9, 12)])
def test_a_box_without_a_size_is_computed(dataset, segmentation):
    content = added({"segmentation": segmentation, "bbox": [1, 2, 0, 4]})
    assert dataset(content)[0]["annotations"][-1]["bbox"] == [4, 3, 8, 6]


@pytest.mark.parametrize(
    "change",
    [
        gone(*FIRST, "iscrowd"),
        gone("annotations", 1, "area"),
        put(*FIRST, "segmentation", value=[[], SQUARE]),
        put(*FIRST, "segmentation", value=[[1, 1]]),
    ],
)
def test_a_file_that_pycocotools_cannot_evaluate_is_evaluated_as_loaded(dataset, tmp_path, change):
    name, files = "test_evaluated", (tmp_path / "a.json", tmp_path / "images")
    dataset(changed(coco_content(), [change]), name)
    register_coco_format(name, *files)
    num_objects = sum(len(record["annotations"]) for record in DatasetCatalog.get(name))
    assert num_objects == 4 - (change[2] == [[1, 1]])
    assert MetadataCatalog.get(name).get("json_file") is None
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"), distributed=False)
    evaluator.reset()
    for image in DatasetCatalog.get(name):
        evaluator.process([image], [{}])
    assert len(evaluator._coco_api.anns) == num_objects
    register_coco_format(name, *files)  # and the config may be read again


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
    good, size = encoded(2, 3, 15, 25)["counts"], [HEIGHT, WIDTH]
    for _ in range(500):
        text = list(good)
        for place in rng.integers(len(text), size=rng.integers(1, 4)):
            text[place] = chr(rng.integers(32, 127))
        try:
            clean = clean_segmentation({"size": size, "counts": "".join(text)}, *size)
        except ValueError:
            continue
        assert clean is None or coco_mask.decode(copy.deepcopy(clean)).shape == (HEIGHT, WIDTH)


def shifted(change):
    """Content whose annotations are four squares away from the corner, changed."""
    content = coco_content()
    first = content["annotations"][0]
    content["annotations"] = []
    for key in range(4):
        x, y = 5 + key, 6
        polygon = [x, y, x + 6, y, x + 6, y + 5, x, y + 5]
        item = {**first, "id": key, "segmentation": [polygon], "bbox": [x, y, 6, 5]}
        content["annotations"].append(item)
        change(item)
    return content


def test_boxes_of_corners_are_refused(dataset):
    def corners(item):
        x, y, width, height = item["bbox"]
        item["bbox"] = [x, y, x + width, y + height]

    assert len(dataset(shifted(lambda _: None), "test_sizes")[0]["annotations"]) == 4
    with pytest.raises(DatasetError, match=r"a\.json: .*\[x, y, width, height\]"):
        dataset(shifted(corners))


def test_relative_polygons_are_refused(dataset):
    def relative(item):
        item["segmentation"] = [[value / 100 for value in item["segmentation"][0]]]

    with pytest.raises(DatasetError, match=r"a\.json: .*between 0 and 1.* must be pixels"):
        dataset(shifted(relative))


def test_a_panoptic_file_names_its_option(dataset):
    content = coco_content()
    content["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": []}]
    with pytest.raises(DatasetError, match=r"a\.json is a panoptic file.*--train-panoptic-json"):
        dataset(content)


def test_a_file_in_place_of_the_image_folder(dataset):
    dataset(coco_content())
    with pytest.raises(DatasetError, match="is not a folder"):
        load_coco_format(NAME, dataset.root / "a.json", dataset.root / "a.json")
