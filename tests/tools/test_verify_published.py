"""tools/verify_published.py on made-up checkpoints and a few images."""

import json

import pytest
import torch

from solo_d2.data.classes import dataset_categories
from tests.checkpoint import published
from tests.evaluation.made_up import images_of, rectangle
from tests.pictures import picture, save
from tools import verify_published


@pytest.fixture
def coco(tmp_path):
    """COCO's layout and classes, with two small images of an object each."""
    root = tmp_path / "coco"
    for number in (1, 2):
        save(root / f"val2017/{number}.png", picture(seed=number))
    content = {
        "images": images_of((48, 64), 1, 2, extension="png"),
        "annotations": [rectangle(number, (10, 10, 40, 30), number, 1) for number in (1, 2)],
        "categories": dataset_categories("coco_2017_val"),
    }
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save({"state_dict": published.authors("solov2_light_448")},
               folder / "SOLOv2_LIGHT_448_R18_3x.pth")  # fmt: skip
    return folder


def test_each_checkpoint_stands_beside_its_published_ap(
    coco, weights, tmp_path, monkeypatch, capsys
):
    torch.save({"model": published.adelaidet()}, weights / "SOLOv2_R50_3x.pth")
    (weights / "broken_1x.pth").write_bytes(b"no checkpoint")
    torch.save({"state_dict": published.authors("solo")}, weights / "SOLO_R50.pth")
    small = ["INPUT.MIN_SIZE_TEST", 96, "DATALOADER.NUM_WORKERS", 0]
    load = verify_published.load_config
    monkeypatch.setattr(verify_published, "load_config", lambda path, x: load(path, x + small))
    output = tmp_path / "verified.json"
    arguments = [str(weights), str(coco), "--device", "cpu", "--output", str(output)]
    assert verify_published.main(arguments) == 1  # two can't be evaluated, which loses no other
    printed = capsys.readouterr().out
    results = {x["file"]: x for x in json.loads(output.read_text())}
    light, ported = results["SOLOv2_LIGHT_448_R18_3x.pth"], results["SOLOv2_R50_3x.pth"]
    assert (light["config"], light["published"]) == ("published/solov2_light_448_R18_3x", 29.6)
    assert (ported["config"], ported["published"]) == ("coco/solov2_R50_3x", 37.6)
    assert 0 <= light["metrics"]["AP"] <= 100
    assert "broken_1x.pth" in results["broken_1x.pth"]["error"]
    assert "1x, 3x" in results["SOLO_R50.pth"]["error"]  # whose schedule nobody knows
    for file in results:
        assert f"| {file} " in printed
    assert "29.6" in printed


@pytest.mark.parametrize("missing", ["weights", "annotations", "images"])
def test_what_is_missing_is_named_before_work(coco, weights, capsys, missing):
    if missing == "weights":
        next(weights.iterdir()).unlink()
    elif missing == "images":
        (coco / "val2017").rename(coco / "val")
    else:
        (coco / "annotations/instances_val2017.json").unlink()
    assert verify_published.main([str(weights), str(coco), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(weights if missing == "weights" else coco) in line
