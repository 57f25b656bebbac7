"""When an export counts as the same as its model."""

import re

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solo_d2.export.agreement import TOLERANCES, Agreement, mixed_batch

pytestmark = pytest.mark.detectron2


def scene(num=4):
    """Stripes of 10 rows, as the model gives them and as an export does."""
    masks = torch.zeros(num, 10 * num, 20, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[10 * index : 10 * index + 10] = True
    scores = torch.linspace(0.9, 0.5, num)
    expected = Instances(
        masks.shape[1:],
        pred_masks=masks,
        pred_boxes=Boxes(torch.zeros(num, 4)),
        scores=scores,
        pred_classes=torch.arange(num),
    )
    found = {"masks": masks.numpy().copy(), "scores": scores.numpy().copy()}
    return expected, found | {"classes": np.arange(num), "num_candidates": np.int64(9)}


def some(found, index):
    return {key: value[index].copy() if value.ndim else value for key, value in found.items()}


def compared(expected, found, **options):
    agreement = Agreement(TOLERANCES["float32"])
    agreement.add(expected, found, **options)
    return agreement


def test_the_same_in_another_order():
    expected, found = scene()
    agreement = compared(expected, some(found, slice(None, None, -1)))
    assert agreement.faults() == []
    assert (agreement.matched, agreement.min_iou, agreement.score_diff) == (4, 1.0, 0.0)
    assert agreement.most_candidates == 9


@pytest.mark.parametrize(
    ("name", "index", "value", "matched", "fault"),
    [
        ("scores", 1, 0.9 - 0.4 / 3 + 0.01, 4, "1 of 4 pairs.*0.001 in their score.*by 0.01"),
        ("masks", (2, slice(20, 22)), False, 4, r"less than 0.95 \(at least by 0.800\)"),
        ("classes", 0, 3, 3, "1 instances are found by only one"),
        ("masks", 1, False, 3, "1 instances are found by only one"),  # one of them is empty
    ],
)
def test_what_differs_is_a_fault(name, index, value, matched, fault):
    expected, found = scene()
    found[name][index] = value
    agreement = compared(expected, found)
    assert agreement.matched == matched
    (line,) = agreement.faults()
    assert re.search(fault, line)


def test_masks_without_pixels_are_the_same_within_a_class():
    expected, found = scene()
    expected.pred_masks[1:3], found["masks"][1:3] = False, False
    agreement = compared(expected, found)
    assert (agreement.matched, agreement.faults()) == (4, [])
    found["classes"][1] = 3
    assert "1 instances are found by only one" in compared(expected, found).faults()[0]


def test_one_of_many_may_be_off():
    expected, found = scene()
    agreement = compared(expected, found)
    for _ in range(148):
        agreement.add(expected, found)
    found["scores"][1] += 0.01
    agreement.add(expected, found)
    assert (agreement.off, agreement.matched, agreement.faults()) == (1, 600, [])
    agreement.add(expected, found)
    assert "2 of 604 pairs" in agreement.faults()[0]


def test_missing_ones_count_unless_near_the_limit():
    expected, found = scene()
    for pair in ((expected, some(found, slice(3))), (expected[:3], found)):
        assert "1 instances" in compared(*pair, least_score=0.4).faults()[0]
        assert compared(*pair, least_score=0.6).faults() == []


def test_nothing_found_proves_nothing():
    expected, found = scene()
    assert "no instance" in compared(expected[:0], some(found, slice(0))).faults()[0]


def test_mixed_batch():
    pixels = torch.arange(3 * 16 * 24, dtype=torch.uint8).view(3, 16, 24)
    inputs = [{"image": pixels, "height": 5, "width": 6}, {"image": pixels[:, :8]}]
    batch = mixed_batch(inputs, torch.tensor([1.2, 103.5, 255.0]))
    first, cropped, flat = (x["image"] for x in batch)
    assert torch.equal(first, pixels)
    assert torch.equal(cropped, pixels[:, :7, :21])
    assert flat.shape == pixels.shape
    assert flat[:, 3, 4].tolist() == [1, 104, 255]
    assert mixed_batch(inputs[:1], torch.zeros(3))[1]["image"].shape == (3, 14, 21)
