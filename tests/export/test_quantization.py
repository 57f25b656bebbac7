"""8-bit convolutions: what is quantised, what stays, what is refused; and the command line."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.detectron2, pytest.mark.export]
pytest.importorskip("detectron2")

from solo_d2.data import catalog  # noqa: E402
from solo_d2.data.classes import make_categories  # noqa: E402
from solo_d2.export.onnx_model import OnnxModel, detector_inputs, load_detector  # noqa: E402
from solo_d2.export.quantization import quantize_onnx  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.export.exported import CLASSES  # noqa: E402
from tests.export.models import OUTPUT_SIZE, detectron2_inputs, small_config  # noqa: E402

# Detectron2 installs a package `tools`, so the file is imported from its folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import quantize_onnx as tool  # noqa: E402

NAMES, IDS = ([x[key] for x in CLASSES] for key in ("name", "id"))


@pytest.fixture(scope="module")
def float_file(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    shutil.copy(exported.onnx, path)
    return path


def calibration(path):
    detector = load_detector(path)
    return (detector.graph_inputs(*detector_inputs(detectron2_inputs(seed))) for seed in range(3))


@pytest.fixture(scope="module", params=["static", "7-bit", "dynamic"])
def quantised(request, float_file):
    path = float_file.parent / f"{request.param}.onnx"
    given = None if request.param == "dynamic" else calibration(float_file)
    quantize_onnx(float_file, path, given, reduce_range=request.param == "7-bit")
    return path


def nodes(path, *kinds):
    import onnx

    return [node for node in onnx.load(str(path)).graph.node if node.op_type in kinds]


def count(path, *kinds):
    return len(nodes(path, *kinds))


def weights_of(path):
    """The 8-bit constants that are as large as a kernel."""
    import onnx

    tensors = onnx.load(str(path)).graph.initializer
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return [
        onnx.numpy_helper.to_array(x) for x in tensors if x.data_type in kinds and len(x.dims) == 4
    ]


def test_all_convolutions_and_nothing_else(float_file, quantised):
    convolutions = count(float_file, "Conv")
    assert convolutions > 10
    if quantised.stem == "dynamic":
        assert count(quantised, "ConvInteger") == convolutions
        assert count(quantised, "Conv", "QuantizeLinear") == 0
    else:
        assert count(quantised, "Conv") == convolutions
        assert 0 < count(quantised, "QuantizeLinear") <= 2 * convolutions
    assert count(quantised, "MatMul") == count(float_file, "MatMul") > 0
    assert len(weights_of(quantised)) == len({x.input[1] for x in nodes(float_file, "Conv")})


def test_seven_bits_where_they_are_wanted(quantised):
    most = max(int(np.abs(x.astype(np.int32)).max()) for x in weights_of(quantised))
    assert most == {"7-bit": 64, "static": 127, "dynamic": 255}[quantised.stem]


def test_finds_nearly_the_same(float_file, quantised):
    detector = load_detector(quantised)
    assert detector.info.precision == "int8"
    expected = OnnxModel(load_detector(float_file))(detectron2_inputs())[0]["instances"]
    found = OnnxModel(detector)(detectron2_inputs())[0]["instances"]
    assert found.image_size == found.pred_masks.shape[1:] == OUTPUT_SIZE
    assert abs(len(found) - len(expected)) <= 5
    best = min(10, len(found))
    torch.testing.assert_close(found.scores[:best], expected.scores[:best], rtol=0, atol=0.05)


def test_only_float32_files(quantised, tmp_path):
    with pytest.raises(ConfigError, match="is of int8, but only float32 files"):
        quantize_onnx(quantised, tmp_path / "model.onnx", None)
    with pytest.raises(ConfigError, match="missing.onnx does not exist"):
        quantize_onnx(tmp_path / "missing.onnx", tmp_path / "model.onnx", None)
    assert list(tmp_path.iterdir()) == []


def test_without_images_there_is_no_scale(float_file, tmp_path):
    with pytest.raises(ConfigError, match="no image to calibrate on"):
        quantize_onnx(float_file, tmp_path / "model.onnx", iter(()))


def run_tool(float_file, output, monkeypatch, figures, *args, classes=NAMES):
    """Run the command line on a data set that is not there, with these figures (8 bits, float)."""
    taken, left = [], iter(figures)

    def loader(cls, cfg, name):
        for seed in range(10):
            taken.append((name, seed))
            yield detectron2_inputs(seed)

    monkeypatch.setattr(tool.Trainer, "build_test_loader", classmethod(loader))
    monkeypatch.setattr(tool, "check_datasets", lambda names: None)
    monkeypatch.setattr(catalog, "categories", lambda name: make_categories(classes, IDS))
    monkeypatch.setattr(tool, "main_metric", lambda cfg, name, model, metric: next(left))
    config = float_file.parent / "config.yaml"
    cfg = small_config("DATASETS.TRAIN", ("first",), "DATASETS.TEST", ("second",))
    config.write_text(cfg.dump())
    given = ["--config-file", config, "--model", float_file, "--output", output, *args]
    return tool.main([str(x) for x in given]), taken


def test_the_tool_writes_what_is_good_enough(float_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "int8.onnx"
    options = ("--calibration-images", 2)
    code, taken = run_tool(float_file, output, monkeypatch, (49.5, 50.0), *options)
    assert (code, taken) == (0, [("first", 0), ("first", 1)])
    printed = capsys.readouterr().out
    assert "second: segm/AP 50.000 in float32, 49.500 in 8 bits" in printed
    info = load_detector(output).info
    assert info.precision == "int8"
    assert (info.class_names, info.class_ids) == (NAMES, IDS)


def test_the_tool_refuses_a_data_set_of_other_classes(float_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "int8.onnx"
    code, taken = run_tool(float_file, output, monkeypatch, (), classes=[*NAMES[:4], "x"])
    assert (code, taken, output.exists()) == (2, [], False)
    assert "only the model has 'thing 4'; only data set 'second' has 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("figures", [(48.9, 50.0), (float("nan"), 50.0)])
def test_the_tool_refuses_what_is_not(float_file, tmp_path, monkeypatch, capsys, figures):
    code, taken = run_tool(float_file, tmp_path / "a.onnx", monkeypatch, figures, "--dynamic")
    assert (code, taken) == (1, [])
    assert "more than --most-drop 1.0 is lost" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_tool_names_what_is_missing(float_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "a.onnx"
    args = ("--opts", "DATASETS.TRAIN", "()")
    code, _ = run_tool(float_file, output, monkeypatch, (), *args)
    assert code == 2
    assert "DATASETS.TRAIN is empty: name a data set by --calibration-dataset" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "c", "--model", "m.onnx", "--output", "a.pt2"])
