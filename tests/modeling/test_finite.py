"""Infinity and NaN in an image or in the weights: what is found is finite, or nothing."""

import pytest
import torch

from solo_d2.modeling.meta_arch.panoptic import LARGEST_LOGIT
from tests.modeling.tiny import image, panoptic_config, tiny_config, tiny_model

pytestmark = pytest.mark.detectron2


NAN, INF = float("nan"), float("inf")


def assert_finite(output):
    instances = output["instances"]
    assert instances.scores.isfinite().all()
    assert instances.pred_boxes.tensor.isfinite().all()
    if "sem_seg" in output:
        assert output["sem_seg"].isfinite().all()
        ids, segments = output["panoptic_seg"]
        assert ids.min() >= 0
        assert ids.max() <= len(segments)
        assert all(0 <= segment.get("score", 0.5) <= 1 for segment in segments)


@pytest.mark.parametrize("make_config", [tiny_config, panoptic_config])
@pytest.mark.parametrize("value", [NAN, INF])
@torch.no_grad()
def test_a_bad_pixel_costs_its_own_image_alone(make_config, value):
    cfg = make_config()
    cfg.MODEL.SOLO.SCORE_THRESH_TEST = cfg.MODEL.SOLO.KEEP_THRESH_TEST = 0.01
    model = tiny_model(cfg, sure=True).eval()
    batch = [{"image": image(seed=seed)["image"].float()} for seed in (0, 1)]
    expected = model(batch)[1]
    batch[0]["image"][1, 40, 50] = value
    found = model(batch)
    for output in found:
        assert_finite(output)
    assert len(expected["instances"]) > 0
    assert torch.equal(found[1]["instances"].scores, expected["instances"].scores)
    assert torch.equal(found[1]["instances"].pred_masks, expected["instances"].pred_masks)


def test_semantic_scores_are_finite_and_the_good_ones_as_they_were():
    model = tiny_model(panoptic_config()).eval()
    nothing = model([{"image": image()["image"]}])[0]["instances"][:0]
    logits = torch.randn(4, 24, 32, generator=torch.Generator().manual_seed(0))
    expected = model.combine(nothing, logits, (96, 128))["sem_seg"]
    logits[0, 3, 3], logits[1, 3, 3], logits[2, 3, 3], logits[3, 3, 3] = NAN, INF, -INF, 3e38
    output = model.combine(nothing, logits, (96, 128))
    assert_finite(output)
    assert torch.equal(output["sem_seg"][:, 24:], expected[:, 24:])
    # Stride 4: these are all of the pixel's own.
    assert output["sem_seg"][0, 14, 14] < -LARGEST_LOGIT / 4
