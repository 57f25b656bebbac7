"""Models that predict contours: targets, one step with every head, decoding, refusals, metric."""

import pytest
import torch
from detectron2.structures import ImageList

from solo_d2.engine import BEST_METRIC
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY
from solo_d2.ops.contours import contour_masks
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.structures import HeadOutputs
from solo_d2.targets import MASK_TARGETS
from tests.fakes import FixedMasks
from tests.modeling.tiny import assert_all_learn, image, losses_of, tiny_config, tiny_model
from tests.test_inference import make_decoder

pytestmark = pytest.mark.detectron2


HEADS = [name for name, _ in SOLO_HEAD_REGISTRY]
STRIDE = 4


def contour_config(head="SOLOHead"):
    cfg = tiny_config(head)
    cfg.MODEL.SOLO.MASK_TARGET = "contour"
    cfg.MODEL.SOLO.LOSS.MASK_TYPE = "focal"
    cfg.MODEL.SOLO.LOSS.MASK_WEIGHT = 20.0
    return cfg


def targets_of(model, samples):
    images = ImageList.from_tensors([x["image"] for x in samples], 32)
    return model.assign_targets([x["instances"] for x in samples], images)


@pytest.mark.parametrize("head", ["DecoupledSOLOHead", "SOLOv2Head"])
def test_targets_are_the_contours_of_the_masks_and_all_else_is_of_the_masks(head):
    samples = [image(num=3, seed=1), image(80, 100, num=4, seed=2)]
    masks = targets_of(tiny_model(tiny_config(head)), samples)
    contours = targets_of(tiny_model(contour_config(head)), samples)
    for name in ("classes", "cells", "instances"):
        assert torch.equal(getattr(contours, name), getattr(masks, name))
    assert contours.num_samples == masks.num_samples
    assert contours.masks.keys() == masks.masks.keys()
    for stride, expected in masks.masks.items():
        assert torch.equal(contours.masks[stride], contour_masks(expected))
    assert any(not torch.equal(contours.masks[s], masks.masks[s]) for s in masks.masks)


@pytest.mark.parametrize("head", ["SOLOHead", "SOLOv2Head"])
def test_a_step_lowers_the_loss_and_every_parameter_learns(head):
    model = tiny_model(contour_config(head))
    batch = [image(num=3, seed=1), image(num=0)]
    before, _ = losses_of(model, batch)
    assert_all_learn(model, before)
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert losses_of(model, batch)[0]["loss_mask"] < before["loss_mask"]


@pytest.mark.parametrize("head", HEADS)
def test_predictions_are_contours(head):
    model = tiny_model(contour_config(head), sure=True).eval()
    with torch.no_grad():
        found = model([{**image(90, 120), "height": 70, "width": 150}])[0]["instances"]
    assert len(found) > 0
    assert found.pred_masks.shape[1:] == (70, 150)
    assert torch.equal(found.pred_masks, contour_masks(found.pred_masks))
    assert torch.equal(found.pred_boxes.tensor, mask_boxes(found.pred_masks))


def decode(probs, **changes):
    """Instances of one image whose cells, all of one class, have these soft masks."""
    side = int(len(probs) ** 0.5)
    logits = torch.linspace(2.0, 3.0, len(probs)).view(1, 1, side, side)  # all survive point NMS
    settings = {"mask_thresh": 0.3, "keep_thresh": 0.3, "contours": True, **changes}
    head = FixedMasks(probs[None], (STRIDE,), (0,))
    decoder = make_decoder([side], [8], head=head, **settings)
    height, width = probs.shape[1:]
    size = (STRIDE * height, STRIDE * width)
    return decoder.decode(HeadOutputs([logits], (height, width)), [size], [size])[0]


def square_bands(*corners, side=10, size=32):
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks, contour_masks(masks) * 0.6


def test_decoded_contour_is_thin_and_at_the_edge_of_the_object():
    masks, probs = square_bands((8, 8))
    found = decode(probs)
    assert len(found.scores) == 1
    # The edges are where the enlarged probability falls to 0.3, half of the contour's 0.6.
    true = masks.repeat_interleave(STRIDE, dim=1).repeat_interleave(STRIDE, dim=2)
    assert found.boxes.tolist() == mask_boxes(true).tolist()
    assert 140 <= int(found.masks.sum()) <= 4 * 40  # the corners are rounded


def test_duplicates_a_pixel_apart_are_suppressed():
    """Though the contours themselves hardly overlap, see the last line."""
    _, probs = square_bands((8, 8), (9, 9), (8, 9), (20, 20))
    assert len(decode(probs).scores) == 2
    assert len(decode(probs, contours=False, keep_thresh=0.1).scores) == 4


def test_score_is_the_class_probability_times_the_mean_of_the_contour():
    _, probs = square_bands((8, 8))
    with_gradient = probs * torch.linspace(0.6, 1.4, 32)
    band = with_gradient[with_gradient > 0.3]
    expected = torch.tensor(2.0).sigmoid() * band.mean()
    torch.testing.assert_close(decode(with_gradient).scores[0], expected)


def test_every_target_has_a_figure_that_decides_the_best_checkpoint():
    assert set(BEST_METRIC) == set(MASK_TARGETS)
