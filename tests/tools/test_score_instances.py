"""tools/score_instances.py: PQ, AJI and the score of the Data Science Bowl, by hand."""

import json
import math

import numpy as np
import pytest

from tests.evaluation.made_up import images_of, rectangle
from tests.json_damage import rle_of
from tools import score_instances

pytestmark = pytest.mark.detectron2

SIZE = (10, 20)


def columns(*ranges):
    """A label map; each range of columns is an object."""
    labels = np.zeros(SIZE, np.int64)
    for number, (start, end) in enumerate(ranges, start=1):
        labels[:, start:end] = number
    return labels


@pytest.mark.parametrize(
    ("truth", "predicted", "ious", "aji", "bowl"),
    [
        ([], [], [], math.nan, math.nan),
        ([(0, 4)], [], [], 0, 0),
        ([], [(0, 4)], [], 0, 0),
        ([(0, 4)], [(0, 4)], [1], 1, 1),
        ([(0, 20)], [(0, 20)], [1], 1, 1),  # no background
        # One object at IoU 0.8, six thresholds below it; a second object and prediction apart.
        ([(0, 4), (10, 14)], [(0, 5), (16, 18)], [0.8], 4 / (5 + 4 + 2), 0.6 * 1 / 3),
        ([(0, 8)], [(0, 4), (4, 8)], [], 0.5 * 8 / 12, 0),  # split; IoU 0.5 does not match
    ],
)
def test_image(truth, predicted, ious, aji, bowl):
    found = score_instances.score_image(columns(*truth), columns(*predicted))
    assert found["ious"] == pytest.approx(ious)
    assert (found["objects"], found["predictions"]) == (len(truth), len(predicted))
    assert found["aji"] == pytest.approx(aji, nan_ok=True)
    assert found["bowl"] == pytest.approx(bowl, nan_ok=True)


def test_command(tmp_path, capsys):
    def mask(*ends):
        return {"segmentation": rle_of(columns(ends) > 0)}

    truth = {
        "images": images_of(SIZE, 1),
        "annotations": [
            rectangle(i, (*ends, 0, 0), 1, 1, **mask(*ends))
            for i, ends in enumerate([(0, 4), (10, 14)], start=1)
        ],
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    results = [
        {"image_id": 1, "category_id": 1, "score": score, **mask(*ends)}
        for score, ends in [(0.5, (2, 9)), (0.9, (0, 4)), (0.1, (10, 14))]
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    files = [f"--json={tmp_path}/truth.json", f"--predictions={tmp_path}/results.json"]
    assert score_instances.main(files) == 0
    # The best prediction is on top; the third is below the threshold: 1 match of 2 and 2.
    assert capsys.readouterr().out.split() == "PQ 50.0 SQ 100.0 RQ 50.0 AJI 30.8 DSB 33.3".split()
    truth["annotations"] += [rectangle(3, (0, 0, 4, 4), 1, 1, segmentation=[])]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert score_instances.main(files) == 0
    out, error = capsys.readouterr()
    assert out.startswith("PQ    50.0")
    assert "1 of 3 annotations" in error
    (tmp_path / "results.json").write_text("{}")
    assert score_instances.main(files) == 2
    assert "results.json" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[]")
    truth["annotations"] = []
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert score_instances.main(files) == 2
    assert "truth.json has no objects" in capsys.readouterr().err
    del truth["images"][0]["height"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert score_instances.main(files) == 2
    assert "image 1 has no 'height'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        score_instances.main([*files, "--min-score", "30"])
