"""When an export counts as the same as its model."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances  # noqa: E402

from solo_d2.export.agreement import TOLERANCES, Agreement, mixed_batch  # noqa: E402

FLOAT32 = TOLERANCES["float32"]


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
    found = {
        "masks": masks.numpy().copy(),
        "scores": scores.numpy().copy(),
        "classes": np.arange(num),
        "num_candidates": np.int64(9),
    }
    return expected, found


def faults_of(expected, found, **options):
    agreement = Agreement(FLOAT32)
    agreement.add(expected, found, **options)
    return agreement, agreement.faults()


def test_the_same_in_another_order():
    expected, found = scene()
    found = {key: value[::-1].copy() if value.ndim else value for key, value in found.items()}
    agreement, faults = faults_of(expected, found)
    assert faults == []
    assert (agreement.matched, agreement.min_iou, agreement.score_diff) == (4, 1.0, 0.0)
    assert agreement.most_candidates == 9


def test_a_score_a_mask_and_a_class_that_differ():
    expected, found = scene()
    found["scores"][1] += 0.01
    line = "1 of 4 pairs differ by more than 0.001 in their score (at most by 0.01)"
    assert line in faults_of(expected, found)[1][0]
    expected, found = scene()
    found["masks"][2, 20:22] = False
    line = "overlap by less than 0.95 (at least by 0.800)"
    assert line in faults_of(expected, found)[1][0]
    expected, found = scene()
    found["classes"][0] = 3
    agreement, faults = faults_of(expected, found)
    assert agreement.matched == 3
    assert "1 instances are found by one" in faults[0]


def test_masks_without_pixels_are_the_same_within_a_class():
    expected, found = scene()
    expected.pred_masks[1:3], found["masks"][1:3] = False, False
    agreement, faults = faults_of(expected, found)
    assert (agreement.matched, faults) == (4, [])
    found["classes"][1] = 3
    assert "1 instances are found by one" in faults_of(expected, found)[1][0]
    expected, found = scene()
    found["masks"][1] = False  # of one of the two alone
    assert "1 instances are found by one" in faults_of(expected, found)[1][0]


def test_one_of_many_may_be_off():
    expected, found = scene()
    agreement = Agreement(FLOAT32)
    for _ in range(149):
        agreement.add(expected, found)
    found["scores"][1] += 0.01
    agreement.add(expected, found)
    assert (agreement.off, agreement.matched, agreement.faults()) == (1, 600, [])
    agreement.add(expected, found)
    assert "2 of 604 pairs" in agreement.faults()[0]


def test_missing_ones_count_unless_near_the_limit():
    expected, found = scene()
    fewer = {key: value[:3] if value.ndim else value for key, value in found.items()}
    for pair in ((expected, fewer), (expected[:3], found)):
        assert "1 instances" in faults_of(*pair, least_score=0.4)[1][0]
        assert faults_of(*pair, least_score=0.6)[1] == []


def test_nothing_found_proves_nothing():
    expected, found = scene()
    none = {key: value[:0] if value.ndim else value for key, value in found.items()}
    assert "prove nothing" in faults_of(expected[:0], none)[1][0]


def test_mixed_batch():
    pixels = torch.arange(3 * 16 * 24, dtype=torch.uint8).view(3, 16, 24)
    inputs = [{"image": pixels, "height": 5, "width": 6}, {"image": pixels[:, :8]}]
    first, cropped, flat = (
        x["image"] for x in mixed_batch(inputs, torch.tensor([1.2, 103.5, 255.0]))
    )
    assert torch.equal(first, pixels)
    assert torch.equal(cropped, pixels[:, :7, :21])
    assert flat.shape == pixels.shape
    assert flat[:, 3, 4].tolist() == [1, 104, 255]
    assert mixed_batch(inputs[:1], torch.zeros(3))[1]["image"].shape == (3, 14, 21)
