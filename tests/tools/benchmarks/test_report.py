"""The report about inference: its stages, the model beside it, the file, what it refuses."""

import argparse
import json
import time

import numpy as np
import pytest
import torch

from solo_d2.api.images import read_image, save_image
from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import panoptic_config, tiny_config, tiny_model
from tools.benchmarks import report, report_text
from tools.benchmarks.stages import STAGES, Pipeline, stage_functions

NEW = {"other", "sum"}
SHARED = {"decode", "resize", "normalise, pad", "backbone", "head", "masks", "NMS"}
SHARED |= {"resize of masks", "RLE", "drawing"}


def reference_config():
    """A Mask R-CNN of 32 channels; with random weights it finds something."""
    cfg = tiny_config()
    model = cfg.MODEL
    model.META_ARCHITECTURE, model.MASK_ON = "GeneralizedRCNN", True
    features = ["p2", "p3", "p4", "p5"]
    model.RPN.IN_FEATURES = model.ROI_HEADS.IN_FEATURES = features
    model.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128]]
    model.RPN.PRE_NMS_TOPK_TEST = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.NAME, model.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 80
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.01
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.POOLER_RESOLUTION = "FastRCNNConvFCHead", 7
    model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = 1, 32
    mask_head = model.ROI_MASK_HEAD
    mask_head.NAME, mask_head.NUM_CONV, mask_head.CONV_DIM = "MaskRCNNConvUpsampleHead", 1, 32
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    cfg = tiny_config()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": tiny_model(cfg, sure=True).state_dict()}, folder / "model.pth")
    reference = reference_config()
    (folder / "reference.yaml").write_text(reference.dump())
    generator = np.random.default_rng(0)
    for index in range(3):
        pixels = generator.integers(256, size=(70, 100, 3), dtype=np.uint8)
        save_image(folder / "images" / f"{index}.png", pixels)
    return folder


def run(folder, *arguments):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    files = ["--config-file", folder / "config.yaml"]
    files += ["--reference-config", folder / "reference.yaml"]
    common = ["--device", "cpu", "--repeats", 1, "--size", "96x128"]
    report.run(parser.parse_args([str(x) for x in (*files, *common, *arguments)]))


def test_report_of_a_model(folder, tmp_path, capsys):
    output = tmp_path / "new" / "report.md"
    weights = ("--weights", folder / "model.pth", "--images", folder / "images")
    run(folder, *weights, "--batch-sizes", 2, 1, 2, "--output", output)
    text = output.read_text()
    assert text in capsys.readouterr().out
    found = json.loads(output.with_suffix(".json").read_text())
    assert list(found["models"]) == ["this model", "Mask R-CNN"]
    for model in found["models"].values():
        assert list(model["batches"]) == ["2", "1"]
        assert set(model["batches"]["2"]["stages"]) == SHARED | NEW
        assert "stages" not in model["batches"]["1"]
        assert model["input_size"] == [96, 128]
        assert model["metric"] is None
        for stage in model["batches"]["2"]["stages"].values():
            assert stage["median"] > 0
    ours, reference = found["models"].values()
    assert ours["instances"] > 10
    assert ours["multiply_adds_of_objects"] == 500 * 32 * 24 * 32  # a dynamic 1x1 convolution
    assert reference["parameters"] != ours["parameters"]
    assert found["images"]["source"] == "files of --images, 70x100 and the like"
    assert {"torch", "solo_d2", "processor"} <= found["machine"].keys()
    assert "detectron2" in found["environment"]
    assert "**Random: Mask R-CNN.**" in text
    for stage in (*SHARED, *NEW, "whole"):
        assert f"\n| {stage} " in text
    assert "semantic" not in text


def test_noise(folder, tmp_path):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    args = parser.parse_args(["--config-file", "c", "--batch-sizes", "1", "9"])
    files, source = report.find_images(args, None, tmp_path)
    assert len(set(files)) == 9
    assert source == "smooth noise, 480x640 and the like"
    first, second = (read_image(file) for file in files[:2])
    assert np.ptp(first) > 100
    assert not np.array_equal(first, second)


def test_data_set_gives_images_and_figures(folder, monkeypatch):
    from solo_d2.data import catalog
    from solo_d2.engine import Trainer
    from solo_d2.evaluation import run as evaluation

    names = sorted((folder / "images").iterdir())
    evaluated = []

    def figure(cfg, name, model, metric):
        evaluated.append((name, metric, type(model).__name__))
        return 40.0 if type(model).__name__ == "SOLO" else float("nan")

    batches = [[{"file_name": str(name)}] for name in names]
    monkeypatch.setattr(Trainer, "build_test_loader", classmethod(lambda *_: batches))
    monkeypatch.setattr(catalog, "check_datasets", lambda names: None)
    monkeypatch.setattr(evaluation, "main_metric", figure)
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    args = ["--config-file", folder / "config.yaml", "--weights", folder / "model.pth"]
    args += ["--reference-config", folder / "reference.yaml", "--dataset", "some"]
    args = parser.parse_args([str(x) for x in args])
    pipelines = report.make_pipelines(args)
    files, source = report.find_images(args, pipelines["this model"].cfg, folder)
    assert files == names
    assert source.startswith("the first of some, 70x100")
    assert report.evaluate(args, pipelines) == ("segm/AP", {"this model": 40.0})
    args.reference_weights = "there"
    _, figures = report.evaluate(args, pipelines)
    assert figures == {"this model": 40.0, "Mask R-CNN": None}
    assert evaluated[1:] == [("some", "segm/AP", "SOLO"), ("some", "segm/AP", "GeneralizedRCNN")]


def test_weights_of_the_reference(folder, tmp_path, monkeypatch):
    from detectron2.modeling import build_model

    from solo_d2.data import catalog

    monkeypatch.setattr(catalog, "check_datasets", lambda names: None)

    cfg = reference_config()
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "reference.pth")
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    args = ["--config-file", folder / "config.yaml", "--device", "cpu"]
    args += ["--reference-config", folder / "reference.yaml"]
    args += ["--reference-weights", tmp_path / "reference.pth"]
    args = parser.parse_args([str(x) for x in args])
    loaded = report.make_pipelines(args)["Mask R-CNN"]
    assert len(loaded.class_names) == 80
    expected = model.state_dict()
    for name, values in loaded.model.state_dict().items():
        assert torch.equal(values, expected[name])
    args.dataset, args.weights = "some", folder / "model.pth"
    with pytest.raises(ConfigError, match="has 80 classes, .*config.yaml 5: they cannot"):
        report.make_pipelines(args)


@pytest.mark.parametrize("make_config", [tiny_config, panoptic_config])
def test_stages_are_those_of_the_whole(make_config, folder):
    cfg = make_config()
    model = tiny_model(cfg, sure=True).eval()
    before = dict(vars(model))
    names = ["name"] * cfg.MODEL.SOLO.NUM_CLASSES
    pipeline = Pipeline(cfg, model, names, 96, 200, None, stage_functions(model))
    drawn = []
    pipeline.draw = lambda image, instances: drawn.append((image, instances))
    files = sorted((folder / "images").iterdir())[:2]
    begin = time.perf_counter()
    stages = pipeline.run_staged(files)
    whole = time.perf_counter() - begin
    panoptic = {"semantic branch", "panoptic merge"} if make_config is panoptic_config else set()
    assert set(stages) == SHARED | {"other"} | panoptic
    assert set(stages) <= set(STAGES)
    assert 0.5 * whole < sum(stages.values()) <= whole
    assert stages["other"] < 0.5 * whole
    # Nothing stays wrapped, and the same is found.
    assert vars(model) == before
    assert "forward" not in vars(model.backbone)
    for (_, staged), found in zip(list(drawn), pipeline.run(files), strict=True):
        assert len(found) > 0
        assert found.image_size == (70, 100)
        assert torch.equal(staged.pred_masks, found.pred_masks)
        assert torch.equal(staged.scores, found.scores)


def test_figures_of_a_data_set_are_shown():
    timing = {"median": 20.0, "iqr": 15.0}
    batch = {"whole": timing, "model": timing | {"median": 10.0}, "peak_bytes": None}
    model = {"parameters": 2_500_000, "input_size": [96, 128], "multiply_adds": 3e9}
    model |= {"multiply_adds_of_objects": 0, "instances": 1.5, "metric": 41.25}
    found = {
        **{
            "config": "c.yaml",
            "weights": "w.pth",
            "opts": [],
            "machine": {"torch": "2"},
            "environment": "",
        },
        **{"reference_config": None, "reference_weights": "r.pth", "stages_of_batch": 1},
        **{"images": {"files": 1, "source": "x"}, "dataset": "some", "metric": "segm/AP"},
        "models": {
            "a": model | {"batches": {1: batch | {"stages": {"head": timing, "sum": timing}}}},
            "b": model | {"batches": {1: batch | {"stages": {"sum": timing}}}, "metric": None},
        },
    }
    text = report_text.format_report(found)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| a | 2.50 | 96x128 | 3.00 | 0.00 | 1.5 | 20 (15) | 41.25 |" in lines
    assert "| b | 2.50 | 96x128 | 3.00 | 0.00 | 1.5 | 20 (15) | - |" in lines
    assert "| head | 20 (15) | - |" in lines
    assert "| 1 | b | 20 (15) | 50 | 10 (15) | 100 | - |" in lines
    assert "Random" not in text
    text = report_text.format_report(found | {"weights": None, "reference_weights": None})
    assert "**Random: a, b.** Such a model finds nothing that means anything" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "0"], "--batch-sizes must be at least 1"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--size", "0x64"], "--size must be at least 1"),
        (["--output", "report.json"], "--output report.json must end in .md"),
        (["--dataset", "shapes_val"], "--dataset needs --weights"),
        (["--weights", "no.pth"], "The weights file no.pth does not exist"),
        (["--reference-weights", "no.pth"], "The weights no.pth can't be used"),
        (["--reference-weights", "README.md"], "The weights README.md can't be used"),
        (["--reference-config", "no.yaml"], "The config file no.yaml does not exist"),
        (["--reference-config", "configs/base/solov2_fpn.yaml"], "is no config of a Mask R-CNN"),
        (["--images", "no.png"], "--images no.png: there is no image"),
        (["--images", "README.md"], "README.md: not an image of a known format"),
    ],
)
def test_what_is_refused(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(folder, *arguments)
