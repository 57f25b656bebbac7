"""The command line: export, check, refuse; and the demo and the runner on what it wrote."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = [pytest.mark.detectron2, pytest.mark.export]
pytest.importorskip("detectron2")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from demo import demo  # noqa: E402
from solo_d2 import ConfigError, Predictor  # noqa: E402
from solo_d2.export.pipeline import ExportPipeline  # noqa: E402
from solo_d2.export.runner import Detector  # noqa: E402
from tests.export.test_runner import run_without_torch  # noqa: E402
from tests.modeling.tiny import tiny_config, tiny_model  # noqa: E402

# Detectron2 installs a package `tools`, so the file is imported from its folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import export_model  # noqa: E402

RUN = """
from solo_d2.export.runner import Detector
found = Detector.load(sys.argv[1])([sys.argv[2]])[0]
print(len(found["scores"]), found["masks"].shape, found["masks"].sum())
"""


def save_pictures(folder):
    """Smooth ones, so that decoders and resizes of different libraries give the same pixels."""
    folder.mkdir()
    for name, (height, width) in {"a.png": (70, 100), "b.png": (120, 90)}.items():
        y, x = np.mgrid[:height, :width]
        image = np.stack([x * 2, y * 2, (x + y)], axis=2).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config and weights of a model with a real backbone, and images."""
    folder = tmp_path_factory.mktemp("model")
    cfg = tiny_config("DecoupledSOLOLightHead")
    cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (), "DATASETS.TEST", (), "INPUT.MIN_SIZE_TEST", 96),
            *("INPUT.MAX_SIZE_TEST", 160, "TEST.DETECTIONS_PER_IMAGE", 20),
        ]
    )
    torch.save({"model": tiny_model(cfg, sure=True).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    save_pictures(folder / "images")
    return folder


def model_arguments(place):
    return ["--config-file", place / "config.yaml", "--weights", place / "model.pth"]


def export(place, output, *args):
    images = () if "--check-dataset" in args else ("--check-images", place / "images")
    arguments = [*model_arguments(place), "--output", output, *images, *args]
    return export_model.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def onnx_file(place):
    assert export(place, place / "out" / "model.onnx") == 0
    assert [file.name for file in (place / "out").iterdir()] == ["model.onnx"]
    return place / "out" / "model.onnx"


def test_metadata_is_in_the_file(onnx_file):
    info = Detector.load(onnx_file).info
    assert info.class_names == [f"class {index}" for index in range(5)]
    assert (info.min_size, info.max_size, info.size_divisor) == (96, 160, 32)
    assert (info.topk, info.max_detections, info.precision) == (500, 20, "float32")


def test_demo_gives_the_same_with_and_without_onnx(place, onnx_file, tmp_path):
    results = []
    for name, model in (("onnx", ["--onnx", onnx_file]), ("torch", model_arguments(place))):
        device = [] if name == "onnx" else ["--device", "cpu"]
        arguments = [*model, *device, "--input", place / "images", "--output", tmp_path / name]
        arguments += ["--json", tmp_path / f"{name}.json", "--confidence-threshold", "0.2"]
        assert demo.main([str(argument) for argument in arguments]) == 0
        results.append(json.loads((tmp_path / f"{name}.json").read_text()))
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["a.png", "b.png"]
    found, expected = results
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert one["file_name"] == other["file_name"]
        assert one["score"] == pytest.approx(other["score"], abs=0.02)


def test_predictor_is_the_detector(place, onnx_file):
    files = sorted((place / "images").iterdir())
    predictor = pickle.loads(pickle.dumps(Predictor(onnx_file, score_thresh=0.0, batch_size=2)))
    detector = Detector.load(onnx_file)
    for file, result in zip(files, predictor(files), strict=True):
        (found,) = detector([file])
        assert result.image_size == found["masks"].shape[1:]
        assert np.array_equal(result.instances.pred_masks.numpy(), found["masks"])
        assert result.classes.names == detector.info.class_names
    with pytest.raises(ConfigError, match="missing.onnx does not exist"):
        Predictor("missing.onnx")
    with pytest.raises(AttributeError, match="no torch module"):
        predictor.model  # noqa: B018


def test_runs_without_torch(place, onnx_file):
    line = run_without_torch(RUN, onnx_file, place / "images" / "a.png")
    found = Detector.load(onnx_file)([place / "images" / "a.png"])[0]
    assert line.split() == f"{len(found['scores'])} (20, 70, 100) {found['masks'].sum()}".split()


@pytest.mark.xfail(strict=False, reason="torch cannot save a program that returns a named tuple")
def test_an_export_that_disagrees_is_not_written(place, tmp_path, monkeypatch, capsys):
    def shifted(self, images, image_sizes):
        return original(self, images, image_sizes) + 0.5

    original = ExportPipeline.normalise
    monkeypatch.setattr(ExportPipeline, "normalise", shifted)
    output = tmp_path / "model.pt2"
    assert export(place, output, "--format", "torch-export") == 1
    assert "disagrees" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.xfail(strict=False, reason="torch cannot save a program that returns a named tuple")
def test_too_few_candidates_are_explained(place, tmp_path, capsys):
    output = tmp_path / "model.pt2"
    assert export(place, output, "--format", "torch-export", "--topk", "9") == 1
    assert "masks of 9 are made: --topk " in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--check-images", "nowhere/*.png"], "No image file matches --check-images"),
        (["--check-dataset", "unknown"], "unknown"),
        (["--opts", "MODEL.SOLO.NMS.TYPE", "hard"], "MODEL.SOLO.NMS.TYPE is 'hard'"),
    ],
)
def test_what_cannot_start_is_named(place, tmp_path, args, message, capsys):
    output = tmp_path / "model.onnx"
    given = [*model_arguments(place), "--output", output]
    if args[0] == "--opts":
        given += ["--check-images", place / "images"]
    assert export_model.main([*map(str, given), *args]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_nothing_to_compare_on(place, tmp_path, capsys):
    arguments = [*model_arguments(place), "--output", tmp_path / "model.onnx"]
    assert export_model.main([str(argument) for argument in arguments]) == 2
    assert "--check-images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--output", "model.pt2"],
        ["--output", "model.onnx", "--format", "aoti"],
        ["--output", "model.onnx", "--topk", "0"],
    ],
)
def test_arguments_that_do_not_fit(args):
    with pytest.raises(SystemExit):
        export_model.parse_args(["--config-file", "c", *args])


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--onnx", "m.onnx", "--config-file", "c"],
        ["--onnx", "m.onnx", "--weights", "w"],
        ["--onnx", "m.onnx", "--panoptic", "folder"],
    ],
)
def test_demo_arguments_that_do_not_fit(args, capsys):
    with pytest.raises(SystemExit):
        demo.parse_args([*args, "--input", "x", "--output", "y"])
    assert "--config-file" in capsys.readouterr().err
    assert not Path("y").exists()
