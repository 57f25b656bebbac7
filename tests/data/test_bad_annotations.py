"""Bad entries of a COCO json, kind by kind: what the check says of each, and what training does."""

import json
import re

import cv2
import numpy as np
import pytest

from solo_d2.data import load_coco_format, register_coco_format
from solo_d2.data.entries import read_entries
from solo_d2.data.problems import ERROR, NOTICE, SKIPPED
from solo_d2.utils.errors import DatasetError
from tests.json_damage import (
    HEIGHT,
    SQUARE,
    WIDTH,
    assert_readable,
    changed,
    coco_content,
    encoded,
    gone,
    put,
    twice,
)

pytestmark = pytest.mark.detectron2

NAN, INF = float("nan"), float("inf")
NAME = "test_bad_annotations"
# Places of the good content.
IMAGE, POLYGONS, RLE, RUNS = ("images", 0), *(("annotations", index) for index in range(3))
SEGMENTATION, FIRST = (*POLYGONS, "segmentation"), (*POLYGONS, "segmentation", 0)
SIZE, COUNTS = ("segmentation", "size"), ("segmentation", "counts")
OUTSIDE = [value + 100 for value in SQUARE]


def of(*values, where, key=None):
    """Cases of one kind: a value each for a place, by the value."""
    path = (*where, key) if key else where
    return {f"{path[-1]} {json.dumps(value):.40}": put(*path, value=value) for value in values}


# Training refuses the file; the check lists it as an error of this kind.
REFUSED = {
    "image with an invalid 'id'": {
        **of(None, True, 1.5, [1], {}, NAN, where=IMAGE, key="id"),
        "no id": gone(*IMAGE, "id"),
    },
    "image with an invalid 'file_name'": {
        **of(None, 5, "", True, ["a.png"], "a\0.png", where=IMAGE, key="file_name"),
        "no file_name": gone(*IMAGE, "file_name"),
    },
    "image with an invalid 'height'": of(None, True, "20", 20.5, INF, where=IMAGE, key="height"),
    "image with an invalid 'width'": {
        **of(0, -20, 10**11, 10**400, where=IMAGE, key="width"),
        "no width": gone(*IMAGE, "width"),
    },
    "image of impossible size": of(10**9, where=IMAGE, key="width"),
    "image id used more than once": {"again": put("images", 1, "id", value=1)},
    "image outside the folder": of(
        "../a.png", "/a.png", "x/../../a.png", where=IMAGE, key="file_name"
    ),
    "image file missing": of(
        "none.png", "猫.png", "\ud800.png", "a\nb", ".", where=IMAGE, key="file_name"
    ),
    "entry of another form": {
        **of(None, 5, "a", [], where=IMAGE),
        **of(None, 5, "a", [{}], where=POLYGONS),
        **of(None, 5, "cat", [3, "cat"], where=("categories", 1)),
    },
    "annotation with an invalid 'id'": {
        **of(None, True, 1.5, [1], NAN, 1e300, where=POLYGONS, key="id"),
        "no id": gone(*POLYGONS, "id"),
    },
    "annotation id used more than once": {"again": twice(*POLYGONS)},
    "annotation with an invalid 'category_id'": {
        **of(None, True, 3.5, [3], {}, where=POLYGONS, key="category_id"),
        "no category_id": gone(*POLYGONS, "category_id"),
    },
    "unknown category": of("3", 4, 10**30, where=POLYGONS, key="category_id"),
    "annotation with an invalid 'image_id'": {
        **of(None, True, 1.5, [1], where=POLYGONS, key="image_id"),
        "no image_id": gone(*POLYGONS, "image_id"),
    },
    "'image_id' of another kind": of("1", where=POLYGONS, key="image_id"),
    "annotation with an invalid 'ignore'": of(1, True, "yes", where=POLYGONS, key="ignore"),
    "annotation with an invalid 'iscrowd'": of(
        None, 2, -1, 0.5, "0", [], NAN, where=POLYGONS, key="iscrowd"
    ),
    "segmentation missing": {"gone": gone(*SEGMENTATION), **of(None, where=SEGMENTATION)},
    "segmentation of another form": {
        **of(5, True, "P0", SQUARE, [None], ["a"], [5], where=SEGMENTATION),
        **of([{"size": [20, 30], "counts": [600]}], where=SEGMENTATION),
        **of(None, 5, "a", {}, [None] * 6, ["1 px"] * 6, [True] * 6, where=FIRST),
        **of([[1, 2], [3, 4], [5, 6]], [[SQUARE]], [1, 2, [3], 4, 5, 6], where=FIRST),
        **of([10**30] * 6, where=FIRST),
    },
    "polygon far outside the image": of([*SQUARE[:-1], 1e9], [*SQUARE[:-1], -1e300], where=FIRST),
    "RLE incomplete": {
        "no size": gone(*RLE, "segmentation", "size"),
        "no counts": gone(*RLE, "segmentation", "counts"),
        "empty": put(*SEGMENTATION, value={}),
    },
    "RLE of another size": {
        **of([30, 20], [20], 20, 600, "20", [None, 30], [20.5, 30], where=(*RLE, *SIZE)),
        **of([100, 30], [600, 1], [-30, 630], [[600]], where=(*RUNS, *COUNTS)),
        # Sums that overflow.
        **of([2**63 - 1] * 2, [2**63 - 1, 2**63 - 1, 602], where=(*RUNS, *COUNTS)),
        **of([], "", where=(*RUNS, *COUNTS)),
    },
    "RLE damaged": {
        **of("PPPP", "ĀĀ", "\0", "猫", "\ud800", 5, {}, where=(*RLE, *COUNTS)),
        **of(["0x258"], [300.5, 299.5], [None], where=(*RUNS, *COUNTS)),
    },
    "annotation with invalid 'keypoints'": of(
        5, "ab", ["a"] * 3, [None, 2, 1], where=POLYGONS, key="keypoints"
    ),
    "category with an invalid 'id'": of(None, True, 3.5, [3], where=("categories", 0), key="id"),
    "category with an invalid 'name'": of(
        None, True, 5.5, ["cat"], where=("categories", 0), key="name"
    ),
    "category ids of two kinds": of("3", where=("categories", 0), key="id"),
    "category id used more than once": {"again": put("categories", 1, "id", value=3)},
    "no categories": of([], where=("categories",)),
    "data set cannot be loaded": {
        **{f"no {key}": gone(key) for key in ("images", "categories")},
        "annotations are null": put("annotations", value=None),
        **{f"{key} of another form": put(key, value={}) for key in ("images", "annotations")},
        "null": put("categories", value=None),
    },
}
# Training leaves it out.
LEFT_OUT = {
    "covers nothing": {
        **of([], [[]], [[1, 2, 3, 4]], [[NAN] * 6], [[1, 2, INF, 4, 5, 6]], where=SEGMENTATION),
        **of([[1, 2, 3, 4, 5, 6, 7]], [[1, 1, 5, 5, 9, 9]], [[3, 3] * 4], where=SEGMENTATION),
        **of([600], encoded(0, 0, 0, 0)["counts"], where=(*RUNS, *COUNTS)),
    },
    "annotation of an unknown image": of(7, -1, "none", where=POLYGONS, key="image_id"),
    "part that covers nothing": of([], [1, 2, 3, 4], [NAN] * 6, [3, 3] * 4, where=FIRST),
    "outside the image": of([OUTSIDE], where=SEGMENTATION),
}
# Training takes it; the check notices it.
NOTICED = {
    "category name used more than once": of("cat", where=("categories", 1), key="name"),
    "image file used more than once": of("b.png", where=IMAGE, key="file_name"),
    "reaches beyond the image": of([*SQUARE[:-1], 60.0], where=FIRST),
}

# Training takes it, and there is nothing to say; more: READ in test_lenient.py.
BOXES = ("ab", [], [1, 2, -3, 4], [NAN] * 4, ["1"] * 4, [1, 1, 0, 4])
BOXES += ([1, 10**400, 2, 2],)
TAKEN = {
    **of(-5, 0, 2**24, 10**30, "text", where=("categories", 0), key="info"),
    **of(*BOXES, where=POLYGONS, key="bbox"),
    **of(None, "48", -1, 10**400, where=POLYGONS, key="area"),
    **of("猫", "", "a" * 3000, "\ud800", where=("categories", 0), key="name"),
}
OUTCOMES = {ERROR: REFUSED, SKIPPED: LEFT_OUT, NOTICE: NOTICED, "": {"taken": TAKEN}}
CASES = [
    pytest.param(change, severity, kind, id=f"{kind}: {name}")
    for severity, kinds in OUTCOMES.items()
    for kind, changes in kinds.items()
    for name, change in changes.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return folder


@pytest.fixture
def read(folder):
    """Write a json; what the check lists, and what loading gives or says."""

    def run(content):
        file = folder / "bad.json"
        file.write_text(json.dumps(content))
        register_coco_format(NAME, file, folder)
        problems = []
        read_entries(NAME, problems.append)
        try:
            return problems, load_coco_format(NAME, file, folder)
        except DatasetError as error:
            return problems, str(error)

    return run


@pytest.mark.parametrize(("change", "severity", "kind"), CASES)
def test_kind_by_kind(read, folder, change, severity, kind):
    problems, loaded = read(changed(coco_content(), [change]))
    found = {(problem.severity, problem.kind) for problem in problems}
    assert ((severity, kind) in found) == (kind != "taken"), found
    for problem in problems:
        assert_readable(str(problem))
    errors = [problem for problem in problems if problem.severity == ERROR]
    if severity == ERROR:
        assert_readable(loaded)
        if kind == "data set cannot be loaded":
            assert loaded == errors[0].reason
        else:  # loading names the file and the first that the check lists
            assert loaded == f"{folder / 'bad.json'}: {errors[0]}"
            assert re.match(
                r"'\w+'(, entry \d+ \(from 0\))?$|(image|annotation|category) ", errors[0].where
            )
        assert "bad.json" in loaded
    else:
        assert not errors
        assert len(loaded) == 2
        left_out = kind in ("covers nothing", "annotation of an unknown image")
        assert sum(len(record["annotations"]) for record in loaded) == 4 - left_out


@pytest.mark.parametrize("content", [None, 5, "images", [], [{}], {}, True])
def test_another_json(read, content):
    problems, refusal = read(content)
    assert [problem.kind for problem in problems] == ["data set cannot be loaded"]
    assert "has no list 'images'" in refusal
