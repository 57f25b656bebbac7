"""tools/object_pairs.py: the statistic of SOLO's section 1."""

import json

import pytest
import torch

from tests.evaluation.made_up import images_of
from tools import object_pairs

pytestmark = pytest.mark.detectron2

# Two near ones of one size, a large one about the same place, one far away.
BOXES = [[10, 10, 20, 20], [12, 10, 20, 20], [0, 0, 40, 40], [200, 200, 20, 20]]


def write(path, boxes, **changes):
    annotations = [
        {"id": i, "image_id": i // 4, "category_id": 1, "bbox": box, "iscrowd": 0} | changes
        for i, box in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images_of((300, 300), 0, 1), "annotations": annotations}
    path.write_text(json.dumps({**content, "categories": categories}))
    return str(path)


def test_by_hand(tmp_path, capsys):
    file = write(tmp_path / "a.json", [*BOXES, [0, 0, 10, 10]])  # the last one is alone
    assert object_pairs.main([file]) == 0
    printed = capsys.readouterr().out
    assert "5 objects, 6 pairs" in printed
    assert "50.0% have centres more than 30 pixels apart" in printed
    assert "66.7% of the other 3 differ" in printed
    counts = object_pairs.count_pairs([torch.tensor(BOXES).double()], distance=1000, ratio=1.5)
    assert counts == (4, 6, 6, 3)


def test_of_nothing(tmp_path, capsys):
    assert object_pairs.main([write(tmp_path / "a.json", BOXES, iscrowd=1)]) == 0
    assert "0 objects, 0 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], "abcd", [1, 2, 3, "x"]])
def test_a_bad_box_is_named(tmp_path, capsys, bbox):
    file = write(tmp_path / "a.json", BOXES, bbox=bbox)
    assert object_pairs.main([file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file in line
    assert "annotations[0]" in line
