"""OpenVINO finds what ONNX Runtime finds, and what cannot be opened is named."""

import json
import pickle
import re

import numpy as np
import pytest

from solo_d2.export import runtimes
from solo_d2.export.runner import Detector
from tests.export.models import SIZES, assert_detector_agrees, images
from tests.export.test_runner import ROOT, run_without_torch

pytestmark = [pytest.mark.detectron2, pytest.mark.export]

RUN = """
from solo_d2.export import predict
sys.exit(predict.main(sys.argv[1:]))
"""


def test_openvino_agrees_with_the_model_and_onnx_runtime(exported):
    pytest.importorskip("openvino")
    detectors = [Detector.load(exported.onnx, name, threads=1) for name in runtimes.RUNTIMES]
    assert detectors[0].info == detectors[1].info
    assert_detector_agrees(exported.model, detectors[1])
    for size, output_size in SIZES:
        one, other = (found.detect(images(size), [output_size])[0] for found in detectors)
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=1e-5)
        assert one["num_candidates"] == other["num_candidates"]
        assert {key: value.dtype for key, value in one.items()} == {
            key: value.dtype for key, value in other.items()
        }


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_predictor_and_demo_take_the_runtime_which_needs_no_torch(exported, tmp_path, runtime):
    from demo import demo
    from solo_d2 import Predictor

    pytest.importorskip(runtime)
    file = exported.folder / "images" / "a.png"
    predictor = Predictor(exported.onnx, runtime=runtime, score_thresh=0.2)
    predictor = pickle.loads(pickle.dumps(predictor))
    assert predictor.backend.runtime == runtime
    scores = predictor(file).instances.scores.tolist()
    arguments = ["--onnx", exported.onnx, "--runtime", runtime, "--input", file]
    arguments = [*map(str, arguments), "--confidence-threshold", "0.2", "--json"]
    assert demo.main([*arguments, str(tmp_path / "demo.json")]) == 0
    run_without_torch(RUN, *arguments, tmp_path / "predict.json")
    for name in ("demo.json", "predict.json"):
        found = json.loads((tmp_path / name).read_text())
        assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_what_cannot_be_opened_is_named(runtime, tmp_path, monkeypatch):
    pytest.importorskip(runtime)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text.onnx.*cannot load"):
        Detector.load(tmp_path / "text.onnx", runtime)
    with pytest.raises(ValueError, match=r"missing.onnx does not exist"):
        Detector.load(tmp_path / "missing.onnx", runtime)
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install {runtime}"):
        Detector.load(tmp_path / "text.onnx", runtime)


@pytest.mark.parametrize(
    ("runtime", "options", "name"),
    [
        ("tensorrt", {}, "runtime"),
        ("openvino", {"providers": ["CPUExecutionProvider"]}, "providers"),
        ("onnxruntime", {"properties": {"CACHE_DIR": "x"}}, "properties"),
    ],
)
def test_options_that_do_not_fit_are_named(runtime, options, name):
    with pytest.raises(ValueError, match=name):
        Detector.load("model.onnx", runtime, **options)


def test_only_exported_models_have_a_runtime():
    from solo_d2 import ConfigError, Predictor

    with pytest.raises(ConfigError, match=r"runtime is 'openvino'.*\.onnx"):
        Predictor("model.pth", runtime="openvino")


def test_the_program_of_the_docs_runs(exported, capsys):
    text = (ROOT / "docs" / "deploy.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    image = exported.folder / "images" / "a.png"
    for name, file in (("output/model.onnx", exported.onnx), ("photo.jpg", image)):
        assert name in program
        program = program.replace(name, str(file))
    exec(program, {})
    printed = capsys.readouterr().out.splitlines()
    expected = Detector.load(exported.onnx)([image])[0]
    assert len(printed) == pytest.approx(len(expected["scores"]), rel=0.2)
    best = re.fullmatch(r"thing \d (0\.\d+), (\d+) pixels", printed[0])
    assert float(best[1]) == pytest.approx(expected["scores"][0], abs=0.02)
