"""The forms of a result agree with each other and with pycocotools."""

import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from solo_d2 import ConfigError
from solo_d2.api.classes import Classes
from solo_d2.api.results import Result, Segmentation
from solo_d2.data.panoptic_json import read_segment_ids
from solo_d2.ops.mask_geometry import mask_boxes

pytestmark = pytest.mark.detectron2

CLASSES = Classes(["a", "b", "c"], [4, 9, 11])
STUFF = Classes(["things", "sky"], [0, 40])


def make_result(masks, **more):
    num, height, width = masks.shape
    instances = Instances(
        (height, width),
        pred_masks=masks,
        pred_boxes=Boxes(mask_boxes(masks)),
        scores=torch.linspace(0.9, 0.5, num),
        pred_classes=torch.arange(num) % 3,
    )
    image = np.zeros((height, width, 3), np.uint8)
    return Result(instances, image, "x/a.png", CLASSES, **more)


def three():
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:10, 3:12] = True
    masks[0, 4:6, 5:8] = False
    masks[1, 6:15, 8:25] = True
    return make_result(masks)  # the last one has no pixel


def panoptic_result():
    ids = torch.tensor([[1, 1, 3], [0, 2, 3]], dtype=torch.int32)
    segments = [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 2, "instance_id": 1},
        {"id": 2, "isthing": True, "score": 0.5, "category_id": 1, "instance_id": 0},
        {"id": 3, "isthing": False, "category_id": 1, "area": 2},
    ]
    masks = torch.stack([ids == 2, ids == 1])
    return make_result(masks, stuff=STUFF, panoptic=Segmentation(ids, segments))


def test_segments_become_masks():
    found = panoptic_result().panoptic
    things, stuff = found.things(), found.stuff()
    assert things.pred_masks.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]]
    assert things.pred_boxes.tensor.tolist() == [[0, 0, 2, 1], [1, 1, 2, 2]]
    assert things.pred_classes.tolist() == [2, 1]
    assert things.scores.tolist() == pytest.approx([0.9, 0.5])
    assert stuff.pred_classes.tolist() == [1]
    nothing = Segmentation(torch.zeros(2, 3, dtype=torch.int32), [])
    assert nothing.things().pred_masks.shape == (0, 2, 3)
    assert len(nothing.stuff()) == 0


def test_coco_results_are_those_of_detectron2():
    result = three()
    expected = instances_to_coco_json(result.instances, 7)
    found = json.loads(json.dumps(result.to_coco(7), allow_nan=False))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pop("file_name") == "x/a.png"
        assert ours.pop("category_id") == CLASSES.json_ids[theirs.pop("category_id")]
        assert ours == theirs
    assert make_result(torch.zeros(0, 4, 4, dtype=torch.bool)).to_coco() == []


def test_dicts_hold_no_tensor():
    first, *_ = three().to_dicts()
    assert first.pop("mask").sum() == 66
    assert first == {
        "class_name": "a",
        "class_index": 0,
        "category_id": 4,
        "score": pytest.approx(0.9),
        "box": [3.0, 2.0, 12.0, 10.0],
    }


def test_label_maps_put_the_better_instance_on_top():
    result = three()
    by_instance, by_class = result.label_map(), result.label_map("classes")
    assert by_instance.dtype == np.int32
    masks = result.instances.pred_masks.numpy()
    assert (by_instance == np.where(masks[0], 1, 2 * masks[1])).all()
    assert (by_class == by_instance).all()  # classes 0 and 1
    with pytest.raises(ValueError, match="classes"):
        result.label_map("pixels")


def test_polygons_cover_their_masks_with_holes_filled():
    result = three()
    polygons = result.polygons()
    assert [len(parts) for parts in polygons] == [1, 1, 0]
    filled = result.instances.pred_masks.numpy().copy()
    filled[0, 2:10, 3:12] = True
    for mask, parts in zip(filled[:2], polygons[:2], strict=True):
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 20, 30)))
        # Polygons go through the centres of the border's pixels.
        assert not (drawn > mask).any()
        assert (drawn != mask).sum() <= 2 * (mask.sum(0).max() + mask.sum(1).max())


def test_filtering_is_by_score_and_class_and_stuff_stays():
    result = panoptic_result()
    assert result.filtered(0.6).instances.pred_classes.tolist() == [0]
    kept = result.filtered(0.6)
    assert [segment["id"] for segment in kept.panoptic.segments] == [1, 3]
    kept = result.filtered(0.0, [1])
    assert kept.instances.pred_classes.tolist() == [1]
    assert [segment["id"] for segment in kept.panoptic.segments] == [2, 3]
    assert len(result) == 2
    with pytest.raises(ValueError, match="numbers"):
        result.filtered(0.0, ["cat"])
    with pytest.raises(ConfigError, match="must end in .png"):
        result.save_panoptic("a.jpg")


def test_track_numbers_go_everywhere_and_decide_colours(tmp_path):
    result = panoptic_result().tracked([5, 8])
    assert [entry["track_id"] for entry in result.to_coco()] == [5, 8]
    assert [entry["track_id"] for entry in result.to_dicts()] == [5, 8]
    entries = result.save_panoptic(tmp_path / "a.png")
    assert entries == [
        {"id": 1, "category_id": 11, "score": 0.9, "track_id": 8},
        {"id": 2, "category_id": 9, "score": 0.5, "track_id": 5},
        {"id": 3, "category_id": 40},
    ]
    assert (read_segment_ids(tmp_path / "a.png") == result.panoptic.ids.numpy()).all()
    plain = three()
    # The second instance first: by its place it has another colour, by its number the same.
    for tracked, same in ((False, False), (True, True)):
        both = plain.tracked([3, 4, 5]) if tracked else plain
        alone = both.filtered(0.0, [1])
        pixels = [result.draw(scale=6)[78, 120] for result in (both, alone)]
        assert (pixels[0] == pixels[1]).all() == same


def test_a_panoptic_png_needs_a_panoptic_model(tmp_path):
    with pytest.raises(ConfigError, match="panoptic model"):
        three().save_panoptic(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_results_are_drawn_by_both_and_pickled():
    for result in (three(), panoptic_result()):
        again = pickle.loads(pickle.dumps(result))
        assert (again.draw(scale=2) == result.draw(scale=2)).all()
        height, width = result.image_size
        assert result.draw(publication=True, scale=2).shape == (2 * height, 2 * width, 3)
    assert repr(three()) == "<Result x/a.png (20 x 30): a 90%, b 70%, c 50%>"
