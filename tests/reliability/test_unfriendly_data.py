"""Annotations and label images of strangers name no other files, crash nothing, cost no memory.

Names of images that leave their folder are in tests/data/test_bad_annotations.py.
"""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from solo_d2.data.coco_format import load_coco_format
from solo_d2.data.panoptic_json import read_panoptic_json, read_segment_ids
from solo_d2.data.problems import Refusal
from solo_d2.data.segmentations import clean_segmentation, to_rle
from solo_d2.evaluation.error_analysis import read_predictions
from solo_d2.utils.errors import DatasetError
from tests import panoptic_files
from tests.json_damage import changed, coco_content, put
from tests.pictures import png_of_size, save
from tools.labels.labelled_folder import read_labelled_folder


@pytest.mark.parametrize("name", ["../1.png", "/etc/passwd", "x/../../1.png", "1\0.png"])
def test_no_path_of_a_panoptic_json_leaves_its_folder(tmp_path, name):
    content = changed(panoptic_files.content(), [put("annotations", 0, "file_name", value=name)])
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="'file_name' must be a PNG in the folder"):
        read_panoptic_json(tmp_path / "panoptic.json")


def test_links_of_ones_own_are_followed(tmp_path):
    """A json cannot make them; many keep their images elsewhere."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
        (tmp_path / "images" / name).symlink_to(tmp_path / name)
    (tmp_path / "a.json").write_text(json.dumps(coco_content()))
    assert len(load_coco_format("unfriendly", tmp_path / "a.json", tmp_path / "images")) == 2


@pytest.mark.parametrize("read", [lambda file: load_coco_format("unfriendly", file, file.parent),
    read_panoptic_json])  # fmt: skip
@pytest.mark.parametrize(
    "content",
    [b'{"images": ' + b"[" * 10**5, b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", b"\xff"],
    ids=["deep", "huge number", "not text"],
)
def test_jsons_that_would_break_a_parser(tmp_path, content, read):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"^[^\n]{,1000}$"):
        read(file)


FAR = [[0, 0, 1e18, 0, 1e18, 1e18]]
SEGMENTATIONS = {
    "size of an RLE": {"size": [10**9, 10**9], "counts": "0"},
    "runs of gigabytes": {"size": [20, 30], "counts": "o" * 6 + "3"},
    "endless numbers": {"size": [20, 30], "counts": "o" * 1000},
    "cut off": {"size": [20, 30], "counts": "PPPo"},
    "no characters of an RLE": {"size": [20, 30], "counts": "\x01\xff"},
    "huge runs": {"size": [20, 30], "counts": [10**30, 1]},
    "runs below 0": {"size": [20, 30], "counts": [-600, 1200]},
    "points at the end of the world": FAR,
    "a line to and fro": [[float(v) for i in range(10**5) for v in (i % 2 * 190, 5 * (i % 40))]],
}


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_segmentations_that_break_pycocotools(tmp_path, kind):
    """Of most of these it takes gigabytes, or the process ends without an error of Python's."""
    segmentation = SEGMENTATIONS[kind]
    with pytest.raises(Refusal):
        clean_segmentation(segmentation, 20, 30)
    (tmp_path / "truth.json").write_text(json.dumps(coco_content()))
    entry = {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": segmentation}
    (tmp_path / "predictions.json").write_text(json.dumps([entry]))
    with pytest.raises(DatasetError, match=r"^.*predictions\.json.*$"):
        read_predictions(tmp_path / "predictions.json", COCO(tmp_path / "truth.json"))


def circle(num_points, turns):
    angles = np.linspace(0, 2 * np.pi * turns, num_points)
    return np.stack([100 + 90 * np.cos(angles), 100 + 90 * np.sin(angles)], axis=1).ravel()


def test_a_million_points():
    """An outline that goes round and round; drawn, it would take a long time and gigabytes."""
    with pytest.raises(Refusal, match="outline of"):
        clean_segmentation([circle(10**6, 10**5)], 200, 200)
    assert to_rle([circle(1000, 1).tolist()], 200, 200)["size"] == [200, 200]


def shape_of(points):
    return json.dumps({"shapes": [{"label": "a", "shape_type": "polygon", "points": points}]})


@pytest.mark.parametrize(
    ("label", "content", "message"),
    [
        ("a.json", shape_of([[0, 0], [1e18, 0], [1e18, 1e18]]).encode(), "far outside the image"),
        ("a.json", b"[" * 10**5, "not a labelme JSON"),
        ("a/thing_1.png", png_of_size(60_000, 60_000), "cannot be read as a mask"),
    ],
)
def test_labels_that_crash_or_explode(tmp_path, label, content, message):
    save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a").mkdir(parents=True)
    (tmp_path / "labels" / label).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_labelled_folder(tmp_path / "images", tmp_path / "labels")


def test_panoptic_pngs_that_explode(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_size(60_000, 60_000))
    with pytest.raises(DatasetError, match=r"a\.png cannot be read: DecompressionBombError"):
        read_segment_ids(tmp_path / "a.png")
