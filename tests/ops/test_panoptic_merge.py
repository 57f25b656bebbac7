"""The panoptic merge beside a loop reference, by hand, and beside Detectron2's."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.panoptic_merge import merge_panoptic
from tests.ops.nms_cases import random_case
from tests.reference import panoptic_merge as reference

NUM_LABELS = 6


def merge(masks, scores, classes, semantic, *thresholds):
    names = ("overlap_thresh", "stuff_area_limit", "score_thresh")
    options = dict(zip(names, thresholds, strict=True))
    boxes = mask_boxes(masks)
    return merge_panoptic(masks, boxes, scores, classes, semantic, num_labels=NUM_LABELS, **options)


def make_case(num, seed, size=(13, 17)):
    """Overlapping masks, some equal, some empty, in any order; labels in blocks."""
    masks, classes, scores = random_case(num, seed, *size)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num, generator=generator)
    blocks = torch.randint(NUM_LABELS, (4, 4), generator=generator)
    semantic = blocks.repeat_interleave(5, 0).repeat_interleave(5, 1)[: size[0], : size[1]]
    return masks[order], scores[order], classes[order], semantic.contiguous()


@pytest.mark.parametrize("num", [0, 1, 2, 5, 30])
@pytest.mark.parametrize(
    "thresholds",
    [(0.5, 1, 0.0), (0.5, 12, 0.3), (0.0, 5, 0.25), (0.9, 20, 0.0), (0.3, 1000, 0.5)],
)
def test_equals_the_loop(num, thresholds):
    case = make_case(num, seed=num)
    panoptic, segments = merge(*case, *thresholds)
    expected, infos = reference.merge_panoptic(*(x.tolist() for x in case), *thresholds)
    assert panoptic.tolist() == expected
    assert panoptic.dtype == torch.int32
    assert [
        (s["isthing"], s["category_id"], s["instance_id"] if s["isthing"] else s["area"])
        for s in segments
    ] == infos


def detectron2_merge(masks, scores, classes, semantic, *thresholds):
    module = pytest.importorskip("detectron2.modeling.meta_arch.panoptic_fpn")
    instances = SimpleNamespace(pred_masks=masks, scores=scores, pred_classes=classes)
    return module.combine_semantic_and_instance_outputs(instances, semantic, *thresholds)


def strictly_falling(scores):
    """The same order, without ties: Detectron2 leaves theirs to an unstable sort."""
    order = torch.argsort(scores, descending=True, stable=True)
    distinct = torch.empty_like(scores)
    distinct[order] = torch.linspace(0.95, 0.05, len(scores))
    return distinct


@pytest.mark.detectron2
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    num=st.integers(0, 40),
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    overlap_thresh=st.floats(0, 1, exclude_max=True),
    stuff_area_limit=st.integers(1, 40),
    score_thresh=st.floats(0, 1, exclude_max=True),
)
def test_equals_detectron2_on_random_cases(
    num, seed, size, overlap_thresh, stuff_area_limit, score_thresh
):
    masks, scores, classes, semantic = make_case(num, seed, size)
    case = masks, strictly_falling(scores), classes, semantic
    thresholds = overlap_thresh, stuff_area_limit, score_thresh
    ours, expected = merge(*case, *thresholds), detectron2_merge(*case, *thresholds)
    assert torch.equal(ours[0], expected[0])
    assert ours[0].dtype == expected[0].dtype
    assert ours[1] == expected[1]
    assert [list(s) for s in ours[1]] == [list(s) for s in expected[1]]


def rectangles(*spans, size=(4, 8)):
    masks = torch.zeros(len(spans), *size, dtype=torch.bool)
    for mask, (x0, x1) in zip(masks, spans, strict=True):
        mask[:, x0:x1] = True
    return masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("thresh", [0.3, 0.7])
def test_a_score_is_compared_as_detectron2_does(thresh, dtype):
    """0.3 rounds up in float32 and 0.7 down, and then is below the threshold."""
    scores = torch.tensor([thresh], dtype=dtype)
    case = rectangles((0, 5)), scores, torch.zeros(1).long(), torch.zeros(4, 8).long()
    _, segments = merge(*case, 0.5, 1, thresh)
    assert len(segments) == int(scores.item() >= thresh)


def test_segments_without_pixels_are_not_listed():
    """Detectron2 lists them at these limits, and panopticapi then refuses the result."""
    masks = rectangles((0, 8), (0, 8))
    semantic = torch.full((4, 8), 2)
    _, segments = merge(masks, torch.tensor([0.9, 0.8]), torch.zeros(2).long(), semantic, 1.0, 0, 0)
    assert [(s["isthing"], s["id"]) for s in segments] == [(True, 1)]


def test_many_instances():
    """More than a byte can number."""
    masks = torch.eye(300).reshape(300, 20, 15).bool()
    scores = torch.linspace(1, 0.5, 300)
    semantic = torch.zeros(20, 15, dtype=torch.int64)
    panoptic, segments = merge(masks, scores, torch.zeros(300).long(), semantic, 0.5, 1, 0.5)
    assert torch.equal(panoptic.flatten(), torch.arange(1, 301, dtype=torch.int32))
    assert len(segments) == 300


def test_inputs_stay_as_they_are_and_need_not_be_contiguous():
    masks, scores, classes, semantic = make_case(30, 3)
    before = masks.clone()
    wide = torch.zeros(30, 26, 34, dtype=torch.bool)
    wide[:, ::2, ::2] = masks
    first = merge(masks, scores, classes, semantic, 0.5, 4, 0.0)
    second = merge(wide[:, ::2, ::2], scores, classes, semantic.T.contiguous().T, 0.5, 4, 0.0)
    assert torch.equal(masks, before)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
