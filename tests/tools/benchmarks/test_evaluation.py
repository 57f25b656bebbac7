"""The benchmark of evaluation: its data, its comparison, its file."""

import argparse
import importlib.util
import json

import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.evaluation.average_precision import BACKENDS  # noqa: E402
from tools.benchmarks import evaluation  # noqa: E402
from tools.benchmarks.evaluation import draw_data_set, make_ways  # noqa: E402


def test_measures_all_evaluators_on_given_files(tmp_path, capsys):
    truth, results = draw_data_set(3, (60, 80), seed=0)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    output = tmp_path / "out.json"
    files = ["--truth", str(tmp_path / "truth.json"), "--predictions"]
    files += [str(tmp_path / "results.json"), "--output", str(output)]
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    evaluation.run(parser.parse_args(["--repeats", "1", *files]))
    saved = json.loads(output.read_text())
    assert saved["counts"] == {"images": 3, "objects": len(truth["annotations"])} | {
        "predictions": len(results)
    }
    names = set(BACKENDS)
    if importlib.util.find_spec("detectron2._C") is None:
        names.remove("detectron2")
    for task in ("bbox", "segm"):
        ways = {way["way"]: way for way in saved["tasks"][task]}
        assert set(ways) == {f"{kind}, {name}" for kind in ("plain", "ours") for name in names}
        assert ways["plain, pycocotools"]["speedup"] == 1
        assert all(way["difference"] < 1e-9 for way in ways.values())
        assert len({round(way["ap"], 9) for way in ways.values()}) == 1
    assert "ours, faster-coco-eval" in capsys.readouterr().out


def test_drawn_predictions_are_neither_perfect_nor_useless():
    truth, results = draw_data_set(4, (120, 160), seed=0)
    assert draw_data_set(4, (120, 160), seed=0) == (truth, results)
    ap = make_ways(truth, results, "segm")["ours, pycocotools"]()[0]
    assert 0.05 < ap < 0.95
