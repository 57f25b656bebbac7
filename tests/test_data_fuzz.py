"""Any json: it is loaded and mapped, or refused by a DatasetError; a check says so before."""

import copy
import json

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from solo_d2 import add_solo_config
from solo_d2.data import SOLODatasetMapper, load_coco_format, register_coco_format
from solo_d2.data.check.entries import read_entries
from solo_d2.data.problems import ERROR
from solo_d2.errors import DatasetError

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = 20, 30
NAME = "test_fuzz"


def good_content():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[3:9, 4:12] = 1
    rle = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()}
    common = {"category_id": 3, "iscrowd": 0, "area": 48.0, "bbox": [4.0, 3.0, 8.0, 6.0]}
    square = [4.0, 3.0, 12.0, 3.0, 12.0, 9.0, 4.0, 9.0]
    counts = {"size": [HEIGHT, WIDTH], "counts": [100, 30, 470]}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "segmentation": [square, [9, 9, 15, 9, 12, 15]], **common},
            {"id": 2, "image_id": 2, "segmentation": rle, **common},
            {"id": 3, "image_id": 2, "segmentation": counts, **common},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }


def places(node, path=()):
    """Every place of the json, the root excepted."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


PLACES = list(places(good_content()))
NUMBERS = [-1, 0, 1, 2, 3, 7, 29, 31, 1e9, -1e30, 1e308, 10**30, 10**400, 0.5]
SPECIAL = [float("nan"), float("inf"), None, True, "", "a", "a.png", "../a.png", "P" * 9, "\0"]
JUNK = st.one_of(
    st.sampled_from(NUMBERS + SPECIAL),
    st.builds(list),
    st.builds(dict),
    st.lists(st.sampled_from([*NUMBERS, None, "1"]), min_size=1, max_size=9),
    st.lists(st.lists(st.floats(width=32), min_size=5, max_size=9), min_size=1, max_size=2),
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), st.one_of(JUNK, st.just(...))), min_size=1, max_size=3
)


def changed(changes):
    """The good content with values put in other places' stead; ... takes a place away."""
    content = good_content()
    for path, value in changes:
        node = content
        try:
            for key in path[:-1]:
                node = node[key]
            if value is ...:
                del node[path[-1]]
            else:
                node[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def mapper():
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (24,)
    return SOLODatasetMapper(cfg, is_train=True)


def outcome(function, *arguments):
    """The result, or the text of a DatasetError, which is one line; nothing else is caught."""
    try:
        return function(*arguments), None
    except DatasetError as error:
        text = str(error)
    assert "\n" not in text
    return None, text


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES)
@example(changes=[(("annotations", 1, "segmentation", "size"), 20)])
@example(changes=[(("annotations", 0, "segmentation", 0, 1), 1e9)])
@example(changes=[(("annotations", 0, "bbox"), [1, 10**400, 2, 2])])
@example(changes=[(("annotations", 2, "segmentation", "counts"), [2**63 - 1, 2**63 - 1, 602])])
def test_loaded_or_refused_and_the_check_agrees(folder, mapper, changes):
    file = folder / "fuzz.json"
    file.write_text(json.dumps(changed(changes)))
    register_coco_format(NAME, file, folder)
    problems = []
    try:
        checked = read_entries(NAME, problems.append).records
        errors = [str(problem) for problem in problems if problem.severity == ERROR]
        records, refusal = outcome(load_coco_format, NAME, file, folder)
        assert bool(errors) == (refusal is not None), (errors, refusal)
        if refusal is None:
            assert records == checked
        for record in records or []:
            _, refusal = outcome(mapper, record)
            # The json alone does not tell the size of the file.
            assert refusal is None or "SizeMismatch" in refusal
    finally:
        DatasetCatalog.pop(NAME)
        MetadataCatalog.pop(NAME)
