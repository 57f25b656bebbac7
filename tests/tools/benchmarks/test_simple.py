"""Benchmarks that compare functions on drawn inputs, and what all benchmarks share."""

import importlib
import importlib.util
import json
import time

import pytest
import torch

from solo_d2.evaluation.average_precision import BACKENDS
from tools import benchmark
from tools.benchmarks import evaluation, loading, nms, postprocess
from tools.benchmarks.common import (
    Stopwatch,
    markdown_table,
    measure,
    peak_memory,
    table_row,
    timing_of,
    timing_text,
)
from tools.benchmarks.head_outputs import make_outputs
from tools.benchmarks.scenes import class_frequencies, make_scene

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a benchmark; what it printed and saved."""

    def run(name, arguments):
        output = tmp_path / "new" / "results.json"
        words = [name, *arguments.split(), *("--device", "cpu", "--repeats", "1")]
        assert benchmark.main([*words, "--output", str(output)]) == 0
        return capsys.readouterr().out, json.loads(output.read_text())

    return run


def test_nms(run):
    printed, saved = run("nms", "--num 40 --size 24x37 --classes 1 3")
    results = saved["results"]
    assert [x["classes"] for x in results] == [1, 3]
    assert "| pairs that differ" in " ".join(printed.split())
    for result in results:
        assert result["agreement"]["pairs_that_differ"] == 0
        assert result["agreement"]["largest_score_difference"] < 1e-6
        assert result["milliseconds"]["ours"]["median"] > 0


def test_postprocess(run):
    arguments = "--num 30 --size 20x30 --channels 16 --output-size 33x44"
    printed, saved = run("postprocess", arguments)
    assert "| masks" in printed
    (result,) = saved["results"]
    assert set(result["stages"]) == {"classes", "masks", "NMS", "resize", "all", "RLE"}


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize("num_cells", [90, 40])
def test_postprocess_finds_the_same_as_plain(product, num_cells):
    outputs = make_outputs(90, (40, 60), 32, 10, num_cells)
    ways = (postprocess.Ours(CPU, product=product), postprocess.Plain(CPU))
    results = [postprocess.decode(way, outputs, (160, 240), (101, 77)) for way in ways]
    found = postprocess.agreement(*results)
    assert found["instances"] > 20
    assert found["classes_equal"]
    assert found["largest_score_difference"] < 1e-5
    assert found["pixels_that_differ"] <= 5


def test_loading(run):
    printed, saved = run("loading", "--num 3 1 --size 60x80 --short-side 96 --images 2")
    results = saved["results"]
    cases = [(x["kind"], x["objects"], x["way"]) for x in results]
    ways = ("ours", "Detectron2")
    assert cases == [(k, n, way) for k in loading.KINDS for n in (3, 1) for way in ways]
    for result in results:
        assert result["pixels_that_differ"] == 0
        assert min(result["mapper_images_per_s"], result["worker_images_per_s"]) > 0
        assert result["MiB"] > 0
    assert "| Detectron2" in printed


def test_evaluation(run, tmp_path):
    truth, results = evaluation.draw_data_set(3, (60, 80), seed=0)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    files = f"--truth {tmp_path / 'truth.json'} --predictions {tmp_path / 'results.json'}"
    printed, saved = run("evaluation", files)
    counts = {"images": 3, "objects": len(truth["annotations"]), "predictions": len(results)}
    assert saved["counts"] == counts
    names = set(BACKENDS)
    if importlib.util.find_spec("detectron2._C") is None:
        names.discard("detectron2")
    for task in ("bbox", "segm"):
        ways = {way["way"]: way for way in saved["tasks"][task]}
        assert set(ways) == {f"{kind}, {name}" for kind in ("plain", "ours") for name in names}
        assert ways["plain, pycocotools"]["speedup"] == 1
        assert all(way["difference"] < 1e-9 for way in ways.values())
    assert "ours, faster-coco-eval" in printed


def test_drawn_predictions_are_neither_perfect_nor_useless():
    truth, results = evaluation.draw_data_set(4, (120, 160), seed=0)
    assert evaluation.draw_data_set(4, (120, 160), seed=0) == (truth, results)
    ap = evaluation.make_ways(truth, results, "segm")["ours, pycocotools"]()[0]
    assert 0.05 < ap < 0.95


def test_nms_work_is_what_boxes_share():
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, 2:6, 2:6] = masks[2] = True
    assert nms.work(masks, torch.zeros(3).long()).tolist() == [3 * 64, 2 * (4 + 16 + 16)]
    assert nms.work(masks, torch.arange(3)).tolist() == [3 * 64, 0]


@pytest.mark.parametrize("num_classes", [1, 10, 80])
def test_scene_has_the_statistics_it_names(num_classes):
    masks, labels, scores = make_scene(150, (64, 96), num_classes)
    again = make_scene(150, (64, 96), num_classes)
    assert all(torch.equal(x, y) for x, y in zip((masks, labels, scores), again, strict=True))
    areas = masks.flatten(1).float().mean(dim=1)
    assert (areas > 0).all()
    assert 0.02 < areas.mean() < 0.12
    assert labels.max() < num_classes
    assert (scores.diff() <= 0).all()
    assert class_frequencies(num_classes).sum() == pytest.approx(1)


def test_functions_take_turns():
    calls = []
    slow = {name: lambda name=name: calls.append(name) or time.sleep(0.11) for name in "ab"}
    timings = measure(slow, 2)
    assert "".join(dict.fromkeys("".join(calls).replace("aa", "A").replace("bb", "B"))) == "AB"
    assert all(timing["median"] >= 110 for timing in timings.values())
    assert timing_text(timing_of([0.5, 0.3, 0.4], 2)) == "200 (50)"


def test_peak_memory():
    size = 64 << 20
    peak = peak_memory(lambda: torch.ones(size, dtype=torch.uint8), CPU)
    assert peak is None or 0.9 * size < peak < 2 * size


def test_stages_accumulate():
    stopwatch = Stopwatch(CPU)
    for _ in range(2):
        with stopwatch.running("a"):
            time.sleep(0.02)
    with stopwatch.running("b"):
        pass
    assert list(stopwatch.seconds) == ["a", "b"]
    assert stopwatch.seconds["a"] >= 0.04 > stopwatch.seconds["b"]


def test_results_are_rows():
    timing = {"median": 2.0, "iqr": 0.5}
    result = {"num": 3, "size": [2, 3], "equal": False, "found": {"scores_off": 1e-7}}
    result |= {"milliseconds": {"ours": timing}, "peak_bytes": {"ours": 3 << 20, "plain": None}}
    assert table_row(result) == {
        **{"num": "3", "size": "2x3", "equal": "NO", "scores off": "1e-07"},
        **{"ours ms": "2 (0.5)", "ours MiB": "3", "plain MiB": "-"},
    }
    assert table_row({"milliseconds": timing, "peak_bytes": 0}) == {"ms": "2 (0.5)", "MiB": "0"}
    assert markdown_table([]) == ""
    assert markdown_table([{"a": 1, "bc": "x"}]).splitlines()[0] == "| a   | bc   |"


def test_a_size_that_is_none(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["nms", "--size", "200"])
    assert "200" in capsys.readouterr().err


@pytest.mark.parametrize("name", benchmark.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        benchmark.parse_args([name, "--help"])
    assert importlib.import_module(f"tools.benchmarks.{name}").__doc__.splitlines()[0] in (
        capsys.readouterr().out
    )
