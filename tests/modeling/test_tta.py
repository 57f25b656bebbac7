"""Test-time augmentation of whole models."""

import pytest
import torch
from torch import nn

from solo_d2.modeling.tta import SOLOWithTTA
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import NUM_LABELS, image, panoptic_config, tiny_config, tiny_model

pytestmark = pytest.mark.detectron2


def augmented(cfg, sizes=(96,), *, flip=False):
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = sizes, flip
    return SOLOWithTTA(cfg, tiny_model(cfg, sure=True).eval())


def infer(model, sample):
    with torch.no_grad():
        return model([sample])[0]


def assert_masks_agree(found, expected, least=0.98):
    both = (found & expected).flatten(1).sum(dim=1)
    either = (found | expected).flatten(1).sum(dim=1)
    assert (both >= least * either).all()


@pytest.mark.parametrize("head", ["SOLOv2Head", "DecoupledSOLOHead"])
@pytest.mark.parametrize("target", ["mask", "contour"])
def test_the_image_itself_as_the_only_view_changes_nothing(head, target):
    cfg = tiny_config(head)
    cfg.MODEL.SOLO.MASK_TARGET = target
    model = augmented(cfg)
    sample = {**image(), "height": 60, "width": 80}
    expected, found = (infer(m, sample)["instances"] for m in (model.model, model))
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert_masks_agree(found.pred_masks, expected.pred_masks)


def test_a_mirrored_image_gives_mirrored_results():
    model = augmented(tiny_config(), flip=True)
    sample = image()
    mirrored = {**sample, "image": sample["image"].flip(2)}
    a, b = (infer(model, x)["instances"] for x in (sample, mirrored))
    torch.testing.assert_close(a.scores, b.scores)
    assert torch.equal(a.pred_classes, b.pred_classes)
    assert_masks_agree(a.pred_masks, b.pred_masks.flip(2))
    plain = infer(model.model, sample)["instances"]
    assert not torch.equal(plain.scores[:10], a.scores[:10])


def test_views_of_several_sizes_are_merged_at_the_output_size():
    found = infer(augmented(tiny_config(), (64, 112), flip=True), image(90, 120))["instances"]
    assert found.pred_masks.shape[1:] == (90, 120)
    assert len(found) > 0
    assert (found.scores.diff() <= 0).all()
    assert torch.equal(found.pred_boxes.tensor, mask_boxes(found.pred_masks))


def test_panoptic_results_are_merged_too():
    cfg = panoptic_config()
    model = augmented(cfg, (96, 128), flip=True)
    sample = {**image(), "height": 60, "width": 80}
    found = infer(model, sample)
    segments, info = found["panoptic_seg"]
    assert segments.shape == (60, 80)
    assert set(segments.unique().tolist()) - {0} == {x["id"] for x in info}
    assert found["sem_seg"].shape == (NUM_LABELS, 60, 80)
    once = infer(augmented(cfg), sample)["sem_seg"].softmax(dim=0)
    plain = infer(model.model, sample)["sem_seg"].softmax(dim=0)
    torch.testing.assert_close(once, plain, rtol=0.05, atol=0.02)


def test_an_image_without_instances():
    cfg = tiny_config()
    cfg.MODEL.SOLO.SCORE_THRESH_TEST = 1.0
    found = infer(augmented(cfg, flip=True), image())["instances"]
    assert found.pred_masks.shape == (0, 96, 128)
    assert found.scores.shape == (0,)


def test_what_cannot_work_is_named():
    with pytest.raises(ConfigError, match="TEST.AUG.ENABLED.*Linear"):
        SOLOWithTTA(tiny_config(), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="TEST.AUG.MIN_SIZES"):
        augmented(tiny_config(), ())
