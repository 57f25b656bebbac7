"""The demo with a panoptic model: overlays, COCO's panoptic format, names of stuff."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from demo import demo, drawing, panoptic
from demo.predictor import Classes
from solo_d2.data.panoptic_json import read_segment_ids
from tests.demo.test_demo import make_cfg, picture, save

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
NUM_LABELS = 4


def panoptic_cfg():
    cfg = make_cfg()
    cfg.merge_from_file(str(ROOT / "configs/base/panoptic_fpn.yaml"))
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_LABELS
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    return cfg


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Command line arguments that name a tiny model which finds things and stuff in every image."""
    folder = tmp_path_factory.mktemp("model")
    cfg = panoptic_cfg()
    torch.manual_seed(0)
    built = build_model(cfg)
    torch.nn.init.normal_(built.semantic_branch.logits.weight)
    torch.nn.init.constant_(built.semantic_branch.logits.bias[2], 1.0)
    torch.save({"model": built.state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return [
        *("--config-file", str(folder / "config.yaml")),
        *("--weights", str(folder / "model.pth"), "--device", "cpu"),
    ]


def run(model, *args, threshold="0"):
    return demo.main([*model, "--confidence-threshold", threshold, *map(str, args)])


def test_overlays_and_segments(model, tmp_path):
    files = [
        save(tmp_path / "x" / "a.png"),
        save(tmp_path / "y" / "a.png", picture(80, 40, seed=1)),
    ]
    outputs = ("--output", tmp_path / "out", "--panoptic", tmp_path / "segments")
    assert run(model, "--input", *files, *outputs) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x_a.png", "y_a.png"]
    content = json.loads((tmp_path / "segments" / "panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(file) for file in files]
    known = {category["id"]: category["isthing"] for category in content["categories"]}
    assert len(known) == 7 + NUM_LABELS - 1
    kinds = set()
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        ids = read_segment_ids(tmp_path / "segments" / "panoptic" / entry["file_name"])
        assert ids.shape == (image["height"], image["width"])
        listed = {segment["id"] for segment in entry["segments_info"]}
        assert set(np.unique(ids)) - {0} == listed
        assert Path(entry["file_name"]).stem == Path(image["file_name"]).parent.name + "_a"
        for segment in entry["segments_info"]:
            assert ("score" in segment) == bool(known[segment["category_id"]])
            kinds.add(known[segment["category_id"]])
    assert kinds == {0, 1}


def test_threshold_is_that_of_things(model, tmp_path):
    args = ("--input", save(tmp_path / "a.png"), "--panoptic", tmp_path / "out")
    assert run(model, *args, threshold="1") == 0
    (entry,) = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    assert entry["segments_info"]
    assert not any("score" in segment for segment in entry["segments_info"])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3), (300, 1)])
def test_odd_sizes(model, tmp_path, size):
    file = save(tmp_path / "a.png", picture(*size))
    args = ("--boxes", "--output", tmp_path / "b.png", "--panoptic", tmp_path / "out")
    assert run(model, "--input", file, *args) == 0
    with Image.open(tmp_path / "b.png") as overlay:
        assert overlay.size == size[::-1]


def test_a_model_without_stuff_has_no_segments(model, tmp_path, capsys):
    args = ("--input", save(tmp_path / "a.png"), "--panoptic", tmp_path / "out")
    assert run([*model], *args, "--opts", "MODEL.META_ARCHITECTURE", "SOLO") == 2
    assert "--panoptic needs a panoptic model" in capsys.readouterr().err
    assert not (tmp_path / "out" / "panoptic.json").exists()


def test_names_of_stuff():
    cfg = panoptic_cfg()
    cfg.DATASETS.TEST = ("coco_2017_val_panoptic_separated",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    things = Classes(["a", "b"], [3, 9])
    stuff = panoptic.find_stuff(cfg, things)
    assert stuff.names[:2] == ["things", "banner"]
    assert stuff.json_ids[:2] == [0, 92]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_LABELS  # another data set's
    stuff = panoptic.find_stuff(cfg, things)
    assert stuff == Classes(["things", "stuff 1", "stuff 2", "stuff 3"], [9, 10, 11, 12])
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    assert panoptic.find_stuff(cfg, things) is None


def test_segments_become_masks():
    ids = torch.tensor([[1, 1, 3], [0, 2, 3]], dtype=torch.int32)
    segments = [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 4, "instance_id": 2},
        {"id": 2, "isthing": True, "score": 0.5, "category_id": 1, "instance_id": 0},
        {"id": 3, "isthing": False, "category_id": 3, "area": 2},
    ]
    found = panoptic.Segmentation.of({"panoptic_seg": (ids, segments)})
    things, stuff = found.things(), found.stuff()
    assert things.pred_masks.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]]
    assert things.pred_boxes.tensor.tolist() == [[0, 0, 2, 1], [1, 1, 2, 2]]
    assert things.pred_classes.tolist() == [4, 1]
    assert things.scores.tolist() == pytest.approx([0.9, 0.5])
    assert stuff.pred_classes.tolist() == [3]
    nothing = panoptic.Segmentation(torch.zeros(2, 3, dtype=torch.int32), [])
    assert nothing.things().pred_masks.shape == (0, 2, 3)
    assert len(nothing.stuff()) == 0


def test_a_label_of_stuff_stands_inside():
    mask = np.zeros((30, 40), dtype=bool)
    mask[:, :2] = mask[20:, :11] = True
    x, y = drawing._deepest_point(mask)
    assert 3 <= x <= 7
    assert 22 <= y <= 27


def test_stuff_has_one_colour_in_every_image_and_things_lie_on_it():
    image = np.full((40, 50, 3), 128, dtype=np.uint8)

    def instances(box, label, **more):
        mask = torch.zeros(1, 40, 50, dtype=torch.bool)
        mask[0, box[1] : box[3], box[0] : box[2]] = True
        boxes = Boxes(torch.tensor([box]).float())
        label = torch.tensor([label])
        return Instances((40, 50), pred_masks=mask, pred_boxes=boxes, pred_classes=label, **more)

    nothing = instances((0, 0, 1, 1), 0, scores=torch.tensor([1.0]))[:0]
    thing = instances((25, 20, 45, 38), 0, scores=torch.tensor([0.8]))
    names = ["a"], ["things", "", ""]  # without text over the pixels
    pictures = [
        drawing.draw_panoptic(image, found, instances(box, 2), *names)
        for found, box in [
            (nothing, (0, 0, 50, 40)),
            (nothing, (0, 0, 20, 40)),
            (thing, (0, 0, 20, 40)),
        ]
    ]
    assert (pictures[0][30, 5] == pictures[1][30, 5]).all()
    assert (pictures[1][30, 5] != 128).any()
    assert (pictures[1][30, 35] == 128).all()
    assert (pictures[2][30, 35] != 128).any()
