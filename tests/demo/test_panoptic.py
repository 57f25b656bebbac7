"""The demo with a panoptic model: overlays, COCO's panoptic format."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import demo
from solo_d2.data.panoptic_json import read_segment_ids
from tests.api.models import NUM_LABELS, arguments, picture, save, save_model

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Command line arguments that name a tiny model which finds things and stuff in every image."""
    return arguments(save_model(tmp_path_factory.mktemp("model"), panoptic=True))


def run(model, *args, threshold="0"):
    return demo.main([*model, "--confidence-threshold", threshold, *map(str, args)])


def test_overlays_and_segments(model, tmp_path):
    files = [
        save(tmp_path / "x" / "a.png"),
        save(tmp_path / "y" / "a.png", picture(80, 40, seed=1)),
    ]
    outputs = ("--output", tmp_path / "out", "--panoptic", tmp_path / "segments")
    assert run(model, "--input", *files, *outputs) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x_a.png", "y_a.png"]
    content = json.loads((tmp_path / "segments" / "panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(file) for file in files]
    known = {category["id"]: category["isthing"] for category in content["categories"]}
    assert len(known) == 7 + NUM_LABELS - 1
    kinds = set()
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        ids = read_segment_ids(tmp_path / "segments" / "panoptic" / entry["file_name"])
        assert ids.shape == (image["height"], image["width"])
        listed = {segment["id"] for segment in entry["segments_info"]}
        assert set(np.unique(ids)) - {0} == listed
        assert Path(entry["file_name"]).stem == Path(image["file_name"]).parent.name + "_a"
        for segment in entry["segments_info"]:
            assert ("score" in segment) == bool(known[segment["category_id"]])
            kinds.add(known[segment["category_id"]])
    assert kinds == {0, 1}


def test_threshold_is_that_of_things(model, tmp_path):
    args = ("--input", save(tmp_path / "a.png"), "--panoptic", tmp_path / "out")
    assert run(model, *args, threshold="1") == 0
    (entry,) = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    assert entry["segments_info"]
    assert not any("score" in segment for segment in entry["segments_info"])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3), (300, 1)])
def test_odd_sizes(model, tmp_path, size):
    file = save(tmp_path / "a.png", picture(*size))
    args = ("--boxes", "--output", tmp_path / "b.png", "--panoptic", tmp_path / "out")
    assert run(model, "--input", file, *args) == 0
    with Image.open(tmp_path / "b.png") as overlay:
        assert overlay.size == size[::-1]


def test_a_model_without_stuff_has_no_segments(tmp_path, capsys):
    model = arguments(save_model(tmp_path / "model"))
    args = ("--input", save(tmp_path / "a.png"), "--panoptic", tmp_path / "out")
    assert run(model, *args) == 2
    assert "--panoptic needs a panoptic model" in capsys.readouterr().err
    assert not (tmp_path / "out" / "panoptic.json").exists()
