"""The graph that is exported, before it is traced: the same instances as the model's."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from solo_d2 import ConfigError
from solo_d2.export.agreement import TOLERANCES, Agreement
from solo_d2.export.pipeline import ExportPipeline
from solo_d2.export.programs import describe
from solo_d2.modeling.heads import SOLOHeadBase, SOLOv2Head
from solo_d2.modeling.layers import DeformConv2d
from solo_d2.ops.coords import append_coords
from tests.export.models import (
    IDS,
    NAMES,
    VARIANTS,
    assert_detector_agrees,
    assert_same,
    expected_of,
    images,
    pipeline_detector,
    small_config,
    small_model,
)
from tests.modeling.tiny import panoptic_config

pytestmark = pytest.mark.detectron2


def make(model, **options):
    pipeline = ExportPipeline(model, **options)
    info = describe(model, pipeline, small_config(), NAMES, IDS)
    return pipeline, pipeline_detector(pipeline, info)


@pytest.mark.parametrize("variant", [*VARIANTS, "soft masks"])
def test_same_instances_as_the_model(variant):
    model = small_model(*VARIANTS.get(variant, []))
    assert_detector_agrees(model, make(model, soft_masks=variant == "soft masks")[1])


def test_padding_has_no_effect():
    pipeline, detector = make(small_model())
    image, sizes = images((50, 70))[0], torch.tensor([[50, 70]])
    found = detector.detect([image], [(50, 70)])[0]
    padded = torch.full((1, 3, 64, 96), 255, dtype=torch.uint8)
    padded[0, :, :50, :70] = torch.from_numpy(image.transpose(2, 0, 1).copy())
    again = pipeline(padded, sizes, torch.arange(50.0)[None], torch.arange(70.0)[None])
    assert again.scores[0, : len(found["scores"])].tolist() == found["scores"].tolist()


def test_no_detection_is_all_zeros():
    pipeline, detector = make(small_model("MODEL.SOLO.SCORE_THRESH_TEST", 1.0))
    found = detector.detect(images((40, 50)), [(30, 20)])[0]
    assert found["masks"].shape == (0, 30, 20)
    assert found["boxes"].shape == (0, 4)
    positions = torch.arange(64.0)[None]
    blank = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    outputs = pipeline(blank, torch.tensor([[64, 64]]), positions, positions)
    assert outputs.masks.shape == (1, 50, 64, 64)
    assert not any(value.any() for value in outputs)


def test_nan_of_the_network_costs_what_has_it_alone():
    pipeline, detector = make(small_model())
    image = images((64, 96))
    before = detector.detect(image, [(64, 96)])[0]

    def spoil_classes(_module, _inputs, outputs):
        outputs.class_logits[0][:, :, ::2] = float("nan")

    def spoilt_masks(*arguments):
        probs = make_masks(*arguments)
        probs[:, ::3, 0, 0] = float("nan")
        return probs

    pipeline.head.register_forward_hook(spoil_classes)
    make_masks, pipeline.cell_masks = pipeline.cell_masks, spoilt_masks
    found = detector.detect(image, [(64, 96)])[0]
    assert 0 < len(found["scores"]) < len(before["scores"])
    assert np.isfinite(found["scores"]).all()
    assert (np.diff(found["scores"]) <= 0).all()
    assert found["scores"].min() > 0
    assert np.isfinite(found["boxes"]).all()


def test_a_cell_keeps_several_classes():
    model = small_model("MODEL.SOLO.NMS.SIGMA", 0.1)
    pipeline, detector = make(model)
    image = images((96, 128))[0]
    expected = expected_of(model, [image], [(96, 128)])[0]
    found = detector.detect([image], [(96, 128)])[0]
    assert_same(expected, found)
    masks = [mask.tobytes() for mask in found["masks"]]
    pairs = list(zip(masks, found["classes"].tolist(), strict=True))
    assert len(set(masks)) < len(set(pairs)) == len(pairs)


def test_more_candidates_than_are_made_or_enter_nms():
    """All masks are made if told, the best by mask score enter NMS, as in the model."""
    model = small_model("MODEL.SOLO.PRE_NMS_TOPK", 60)
    image = images((96, 128))
    expected = expected_of(model, image, [(96, 128)])[0]
    few, default, all_of_them = (
        make(model, topk=topk)[1].detect(image, [(96, 128)])[0] for topk in (7, None, 1000)
    )
    assert_same(expected, all_of_them)
    assert not np.array_equal(default["scores"], expected.scores.numpy())
    assert 0 < len(few["scores"]) <= 7
    assert few["num_candidates"] > 50


@pytest.mark.parametrize("deform", ["", "v2"])
def test_half_precision(deform):
    # A trained model is sure of a few; here far less is suppressed, so few candidates are made.
    model = small_model("MODEL.SOLO.HEAD.DEFORM", deform, "MODEL.SOLO.SCORE_THRESH_TEST", 0.6)
    pipeline, detector = make(model, half=True)
    deformable = [m for m in pipeline.modules() if isinstance(m, DeformConv2d)]
    assert len(deformable) == (2 if deform else 0)
    kept = {id(p) for module in deformable for p in module.parameters()}
    for parameter in pipeline.parameters():
        wanted = torch.float32 if id(parameter) in kept else torch.float16
        assert parameter.dtype == wanted
    assert next(model.parameters()).dtype == torch.float32
    agreement = Agreement(TOLERANCES["float16"])
    batch = images((96, 128), (64, 100))
    sizes = [image.shape[:2] for image in batch]
    for one, found in zip(
        expected_of(model, batch, sizes), detector.detect(batch, sizes), strict=True
    ):
        agreement.add(one, found, least_score=0.1)
    assert agreement.matched > 20
    assert agreement.faults() == []


class PlainHead(SOLOv2Head):
    mask_factors = SOLOHeadBase.mask_factors


def model_without_factors():
    model = small_model()
    model.head.__class__ = PlainHead
    return model


@pytest.mark.parametrize(
    ("make_model", "key"),
    [
        (lambda: small_model("MODEL.SOLO.NMS.TYPE", "hard"), "MODEL.SOLO.NMS.TYPE is 'hard'"),
        (lambda: small_model("MODEL.SOLO.NMS.TYPE", "soft"), "MODEL.SOLO.NMS.TYPE is 'soft'"),
        (lambda: small_model("MODEL.SOLO.MASK_TARGET", "contour"), "MASK_TARGET is 'contour'"),
        (lambda: small_model("MODEL.SOLO.HEAD.ALIGN", "max_pool"), "HEAD.ALIGN is 'max_pool'"),
        (lambda: build_model(panoptic_config()), "META_ARCHITECTURE is 'PanopticSOLO'"),
        (model_without_factors, "MODEL.SOLO.HEAD.NAME is 'PlainHead'"),
    ],
)
def test_what_cannot_be_exported_is_named(make_model, key):
    with pytest.raises(ConfigError, match=key):
        ExportPipeline(make_model())


@pytest.mark.parametrize("size", [1, 2, 3, 64, 333])
def test_coordinates_of_a_trace(size, monkeypatch):
    feature = torch.zeros(1, 1, 2, size)
    expected = append_coords(feature)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(append_coords(feature), expected, rtol=0, atol=2e-7)
