"""The panoptic model: losses, gradients, results, and what it shares with SOLO."""

import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch.nn import functional as F

from solo_d2.ops import panoptic_merge
from solo_d2.utils.errors import DatasetError
from tests.modeling.tiny import (
    IGNORED,
    NUM_LABELS,
    assert_all_learn,
    image,
    losses_of,
    panoptic_config,
    tiny_model,
    with_sem_seg,
)

pytestmark = pytest.mark.detectron2


def panoptic_model(*options, head="SOLOv2Head", sure=False):
    cfg = panoptic_config(head)
    cfg.merge_from_list(list(options))
    model = tiny_model(cfg, sure=sure)
    if sure:  # labels of some variety
        torch.nn.init.normal_(model.semantic_branch.logits.weight)
    return model


SHARED = ("MODEL.SEM_SEG_HEAD.SHARE_MASK_FEATURE", True)
BATCHES = {
    "full": lambda: [with_sem_seg(image(seed=1)), with_sem_seg(image(80, 100, seed=2))],
    "no instance": lambda: [with_sem_seg(image(num=0))],
    "no label": lambda: [image() | {"sem_seg": torch.full((96, 128), IGNORED)}],
}


@pytest.mark.parametrize(
    ("head", "options"), [("SOLOv2Head", ()), ("SOLOv2Head", SHARED), ("DecoupledSOLOHead", ())]
)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_trains_every_parameter(head, options, batch):
    model = panoptic_model(*options, head=head)
    losses, _ = losses_of(model, BATCHES[batch]())
    assert set(losses) == {"loss_cls", "loss_mask", "loss_sem_seg"}
    assert (losses["loss_sem_seg"] == 0) == (batch == "no label")
    assert_all_learn(model, losses)


def test_padding_and_ignored_pixels_have_no_loss():
    """At the size of the input, with the padding of a batch of two sizes left out."""
    model = panoptic_model("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 3.0).train()
    batch = BATCHES["full"]()
    logits = torch.randn(2, NUM_LABELS, 24, 32, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    pixels, truth = [], []
    for sample, scores in zip(batch, large, strict=True):
        labels = sample["sem_seg"]
        scores = scores[:, : labels.shape[0], : labels.shape[1]]
        pixels.append(scores.flatten(1).T[labels.flatten() != IGNORED])
        truth.append(labels[labels != IGNORED])
    expected = 3 * F.cross_entropy(torch.cat(pixels), torch.cat(truth))
    torch.testing.assert_close(model.semantic_loss(batch, logits), expected)


def test_data_without_labels_is_named():
    with pytest.raises(DatasetError, match="sem_seg_file_name"):
        losses_of(panoptic_model(), [with_sem_seg(image()), image()])


@pytest.mark.parametrize("options", [(), SHARED])
@pytest.mark.parametrize("size", [(96, 128), (50, 70), (200, 301)])
def test_results_are_detectron2s(options, size):
    thresh = ("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.1)
    limit = ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 5)
    model = panoptic_model(*options, *thresh, *limit, sure=True).eval()
    # The input is padded to 96 x 128.
    sample = image(90, 110) | {"height": size[0], "width": size[1]}
    with torch.no_grad():
        result = model([sample])[0]
        images = model.preprocess_image([sample])
        features = model.backbone(images.tensor)
        logits = model.semantic_branch(features, model.head(features))
    large = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)[0]
    scores = sem_seg_postprocess(large, (90, 110), *size)
    torch.testing.assert_close(result["sem_seg"], scores)
    assert result["sem_seg"].shape == (NUM_LABELS, *size)
    instances = result["instances"]
    assert len(instances) > 0
    expected = combine_semantic_and_instance_outputs(
        instances, result["sem_seg"].argmax(dim=0), 0.5, 5, 0.1
    )
    assert torch.equal(result["panoptic_seg"][0], expected[0])
    assert result["panoptic_seg"][1] == expected[1]
    assert {segment["isthing"] for segment in expected[1]} == {True, False}


def test_scores_are_made_in_chunks(monkeypatch):
    scores = torch.randn(7, 12, 16)
    sizes = {"stride": 4, "image_size": (45, 60), "output_size": (37, 81)}
    whole = panoptic_merge.resize_scores(scores, **sizes)
    monkeypatch.setattr(panoptic_merge, "CHUNK_ELEMENTS", 2 * 48 * 64)
    assert torch.equal(panoptic_merge.resize_scores(scores, **sizes), whole)


def test_a_batch_equals_its_images_alone():
    """Of images that are padded to the same size: padding is seen by the convolutions."""
    model = panoptic_model(sure=True).eval()
    samples = [image(90, 120, seed=1), image(84, 128, seed=2)]
    with torch.no_grad():
        batched = model(samples)
        single = [model([x])[0] for x in samples]
    for a, b, sample in zip(batched, single, samples, strict=True):
        assert a["panoptic_seg"][0].shape == sample["image"].shape[1:]
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-4, atol=1e-4)
        assert (a["panoptic_seg"][0] != b["panoptic_seg"][0]).float().mean() < 1e-2


def test_nothing_found():
    model = panoptic_model("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 10**6).eval()
    with torch.no_grad():
        result = model([image(70, 90)])[0]
    assert len(result["instances"]) == 0
    panoptic, segments = result["panoptic_seg"]
    assert panoptic.shape == (70, 90)
    assert panoptic.dtype == torch.int32
    assert not panoptic.any()
    assert segments == []


def test_shared_mask_feature_adds_one_convolution():
    names = {name for name, _ in panoptic_model(*SHARED).semantic_branch.named_parameters()}
    assert names == {"logits.weight", "logits.bias"}
