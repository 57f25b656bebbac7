"""The command line: agreement printed, refusals; and the demo and the runner on what it wrote."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import demo
from solo_d2 import ConfigError, Predictor
from solo_d2.api.classes import Classes
from solo_d2.export.agreement import TOLERANCES
from solo_d2.export.pipeline import ExportPipeline
from solo_d2.export.runner import Detector
from tests.export.exported import CLASSES, model_arguments
from tests.export.models import pipeline_detector

pytestmark = [pytest.mark.detectron2, pytest.mark.export]


def run_demo(output, images, *model):
    """COCO results of the demo, which also draws."""
    arguments = [*model, "--input", images, "--output", output, "--json", output / "found.json"]
    assert demo.main([*map(str, arguments), "--confidence-threshold", "0.2"]) == 0
    return json.loads((output / "found.json").read_text())


def test_demo_gives_the_same_with_and_without_onnx(exported, tmp_path):
    images = exported.folder / "images"
    found = run_demo(tmp_path / "by_onnx", images, "--onnx", exported.onnx)
    by_torch = *model_arguments(exported.folder), "--device", "cpu"
    expected = run_demo(tmp_path / "by_torch", images, *by_torch)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert one["file_name"] == other["file_name"]
        assert one["score"] == pytest.approx(other["score"], abs=0.02)
    assert (tmp_path / "by_onnx" / "a.png").exists()


def test_predictor_is_the_detector(exported):
    files = sorted((exported.folder / "images").iterdir())
    predictor = pickle.loads(pickle.dumps(Predictor(exported.onnx, score_thresh=0.0, batch_size=2)))
    detector = Detector.load(exported.onnx)
    for file, result in zip(files, predictor(files), strict=True):
        (found,) = detector([file])
        assert result.image_size == found["masks"].shape[1:]
        assert np.array_equal(result.instances.pred_masks.numpy(), found["masks"])
        assert result.classes == Classes.of(CLASSES)  # of the checkpoint
    whole = predictor(files[0]).instances.pred_masks
    tiled = Predictor(exported.onnx, score_thresh=0.0, tiles=max(whole.shape))(files[0])
    assert torch.equal(tiled.instances.pred_masks.whole(), whole)
    assert detector.info.class_ids == [2, 5, 8, 11, 14]
    with pytest.raises(ConfigError, match="missing.onnx does not exist"):
        Predictor("missing.onnx")
    with pytest.raises(AttributeError, match="no torch module"):
        predictor.model  # noqa: B018


@pytest.fixture
def export(export_tool, export_folder, monkeypatch, tmp_path):
    """Runs the command line without tracing: whether to write is decided alike for all formats."""
    made = []
    monkeypatch.setattr(export_tool, "trace", lambda *args: made.append(args))
    save, load = (lambda export, path: path.touch()), (lambda path: pipeline_detector(*made[-1]))
    monkeypatch.setitem(export_tool.FORMATS, "torch-export", (save, load))

    def run(*args):
        given = [*model_arguments(export_folder), "--format", "torch-export"]
        given += ["--output", tmp_path / "out" / "model.pt2", *args]
        return export_tool.main([str(argument) for argument in given])

    return run


@pytest.fixture
def images(export_folder):
    return "--check-images", export_folder / "images"


def shift_pixels(monkeypatch, number):
    """Make what is exported another model."""
    original = ExportPipeline.normalise
    monkeypatch.setattr(ExportPipeline, "normalise", lambda *args: original(*args) + number)


def test_agreement_is_printed(export, images, tmp_path, capsys):
    assert export(*images) == 0
    printed = capsys.readouterr().out
    # Two images, and a batch of two and an empty one.
    assert "5 images: 200 instances of both, 200 of the model, 200 of the export" in printed
    assert (tmp_path / "out" / "model.pt2").exists()


def test_an_export_that_disagrees_is_not_written(export, images, tmp_path, monkeypatch, capsys):
    shift_pixels(monkeypatch, 0.5)
    assert export(*images) == 1
    assert "disagrees" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_too_few_candidates_are_explained(export, images, tmp_path, capsys):
    assert export(*images, "--topk", "9") == 1
    assert "masks of 9: use --topk " in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_finds_nothing_is_not_traced(export, images, monkeypatch, capsys):
    monkeypatch.setattr("tools.export_model.trace", lambda *_: pytest.fail("traced"))
    assert export(*images, "--opts", "MODEL.SOLO.SCORE_THRESH_TEST", 1.0) == 1
    assert "finds no instance in the 2 images" in capsys.readouterr().err


@pytest.fixture
def truth(export_folder, tmp_path):
    """Arguments that name a data set whose truth is what the model finds."""
    images, annotations = [], []
    for image_id, name in enumerate(("a.png", "b.png")):
        place = tmp_path / f"found {image_id}"
        found = run_demo(place, export_folder / "images" / name, *model_arguments(export_folder))
        height, width = found[0]["segmentation"]["size"]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += [{**one, "image_id": image_id, "iscrowd": 0} for one in found]
    for number, annotation in enumerate(annotations, start=1):
        _, _, width, height = annotation["bbox"]
        annotation.update(id=number, area=width * height)
    content = {"images": images, "annotations": annotations, "categories": CLASSES}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    entry = ["test_truth", str(tmp_path / "truth.json"), str(export_folder / "images")]
    options = "--opts", "DATALOADER.NUM_WORKERS", 0, "DATASETS.COCO_FORMAT", [entry]
    return "--check-dataset", "test_truth", *options


def test_ap_of_a_data_set_is_compared(export, truth, tmp_path, monkeypatch, capsys):
    assert export(*truth) == 0
    line = "test_truth: mask AP ([0-9.]+) of the model, ([0-9.]+) exported"
    ap, exported_ap = re.search(line, capsys.readouterr().out).groups()
    assert float(ap) == float(exported_ap) > 90
    # Instances alone agree well enough to be let through.
    tolerance = replace(TOLERANCES["float32"], share=1)
    monkeypatch.setitem(TOLERANCES, "float32", tolerance)
    shift_pixels(monkeypatch, 5)
    assert export(*truth) == 1
    assert "mask AP is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--check-images", "nowhere/*.png"], "No image file matches --check-images"),
        (["--check-dataset", "unknown"], "unknown"),
        ([], "--check-images"),
        (["--opts", "MODEL.SOLO.NMS.TYPE", "hard"], "MODEL.SOLO.NMS.TYPE is 'hard'"),
    ],
)
def test_what_cannot_start_is_named(export, images, tmp_path, args, message, capsys):
    assert export(*(images if "--opts" in args else ()), *args) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def no_trace(*_):
    raise AssertionError("the check comes before the export")


def test_data_to_compare_on_is_checked_before_the_export(
    export, export_tool, export_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(export_tool, "trace", no_trace)
    (tmp_path / "bad.png").write_text("no image")
    assert export("--check-images", export_folder / "images", tmp_path / "bad.png") == 2
    assert "bad.png: not an image" in capsys.readouterr().err
    content = {"images": [], "annotations": [], "categories": CLASSES}
    for name, change in {"test_empty": {}, "test_other": {"categories": CLASSES[:2]}}.items():
        image = {"id": 1, "file_name": "a.png", "height": 70, "width": 100}
        more = {"images": [image]} if change else {}
        (tmp_path / f"{name}.json").write_text(json.dumps(content | more | change))
        entry = [name, str(tmp_path / f"{name}.json"), str(export_folder / "images")]
        assert export("--check-dataset", name, "--opts", "DATASETS.COCO_FORMAT", [entry]) == 2
    err = capsys.readouterr().err
    assert "'test_empty' has no images" in err
    assert "The classes of the model and data set 'test_other' differ" in err


def test_tiles_are_not_exported(export, export_tool, images, monkeypatch, capsys):
    monkeypatch.setattr(export_tool, "trace", no_trace)
    with pytest.raises(AssertionError):
        export(*images, "--opts", "TEST.TILES.SIZE", 64)
    assert "TEST.TILES is not exported" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_known_before_the_export(
    export, export_tool, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(export_tool, "trace", no_trace)
    (tmp_path / "folder.pt2").mkdir()
    assert export(*images, "--output", tmp_path / "folder.pt2") == 2
    assert "folder.pt2 is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--output", "model.pt2"],
        ["--output", "model.onnx", "--format", "aoti"],
        ["--output", "model.onnx", "--topk", "0"],
    ],
)
def test_arguments_that_do_not_fit(export_tool, args):
    with pytest.raises(SystemExit):
        export_tool.parse_args(["--config-file", "c", *args])


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--onnx", "model_final.pth"],
        ["--onnx", "m.onnx", "--config-file", "c"],
        ["--onnx", "m.onnx", "--weights", "w"],
        ["--onnx", "m.onnx", "--panoptic", "folder"],
        ["--onnx", "m.onnx", "--tiles", "4"],
    ],
)
def test_demo_arguments_that_do_not_fit(args, capsys):
    with pytest.raises(SystemExit):
        demo.parse_args([*args, "--input", "x", "--output", "y"])
    assert "--onnx" in capsys.readouterr().err
    assert not Path("y").exists()
