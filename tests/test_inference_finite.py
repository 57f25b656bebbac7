"""Whatever the head gives, infinity and NaN too, scores and boxes are finite."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_d2.inference import NMS, build_nms
from solo_d2.ops.candidates import class_probabilities
from solo_d2.structures import HeadOutputs
from tests.fakes import kernel_outputs
from tests.test_inference import NMS_PARAMS, make_decoder
from tools.benchmarks.head_outputs import KernelHead

GRIDS = (6, 4)
CHANNELS = 4
BAD = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 0.0)


def head_outputs(seed, spoilt):
    """Random outputs of two images; `spoilt` says (part, share, value) of what is overwritten."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 3, side, side, generator=generator) for side in GRIDS]
    kernels = [torch.randn(2, CHANNELS, side, side, generator=generator) for side in GRIDS]
    feature = torch.randn(2, CHANNELS, 12, 16, generator=generator)
    for part, share, value in spoilt:
        for tensor in {"classes": logits, "kernels": kernels, "feature": [feature]}[part]:
            hit = torch.rand(tensor.shape, generator=generator) < share
            hit[1] = False  # the second image is as it was
            tensor[hit] = value
    return kernel_outputs(logits, kernels, feature)


def decoder(nms, backend, product, **options):
    return make_decoder(
        GRIDS,
        (8, 8),
        nms=build_nms(nms, {**NMS_PARAMS, **options, "backend": backend}),
        head=KernelHead([4, 4], has_factors=product),
        backend=backend,
        score_thresh=0.3,
        keep_thresh=0.0,
    )


def assert_finite(found):
    for result in found:
        assert result.scores.isfinite().all()
        assert (result.scores > 0).all()
        assert (result.scores <= 1).all()
        assert (result.scores.diff() <= 0).all()
        assert result.boxes.isfinite().all()
        assert (result.boxes >= 0).all()
        assert (result.boxes[:, 2] <= 60).all()
        assert (result.boxes[:, 3] <= 44).all()
        assert len(result.scores) == len(result.boxes) == len(result.masks)


def decode(made, outputs: HeadOutputs):
    return made.decode(outputs, [(46, 62)] * 2, [(44, 60)] * 2)


SPOILT = st.lists(
    st.tuples(
        st.sampled_from(["classes", "kernels", "feature"]),
        st.sampled_from([0.01, 0.2, 1.0]),
        st.sampled_from(BAD),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("nms", NMS)
@pytest.mark.parametrize("backend", ["torch", "tiled"])
@pytest.mark.parametrize("product", [False, True])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), spoilt=SPOILT, kernel=st.sampled_from(["gaussian", "linear"]))
def test_scores_and_boxes_are_finite(nms, backend, product, seed, spoilt, kernel):
    made = decoder(nms, backend, product, kernel=kernel)
    found = decode(made, head_outputs(seed, spoilt))
    assert_finite(found)
    untouched = decode(made, head_outputs(seed, []))[1]
    assert len(untouched.scores) > 0
    for name in ("scores", "classes", "masks", "boxes"):
        assert torch.equal(getattr(found[1], name), getattr(untouched, name))


@pytest.mark.parametrize("nms", NMS)
def test_a_mask_with_a_pixel_of_nan_has_no_say(nms):
    """As if its cell were no candidate: it neither removes other masks nor takes their place."""

    class SpoiltHead(KernelHead):
        def masks(self, outputs, image, cells):
            probs = super().masks(outputs, image, cells)
            probs[cells.index % 3 == 0, 0, 0] = float("nan")
            return probs

    outputs = head_outputs(1, [])
    probs = class_probabilities(outputs.class_logits)[0]
    whole = replace(decoder(nms, "torch", product=False, thresh=0.3), pre_nms_topk=20)
    spoilt = replace(whole, head=SpoiltHead([4, 4], has_factors=False))
    found = spoilt.find(outputs, 0, probs)
    probs[::3] = 0
    expected = whole.find(outputs, 0, probs)
    assert len(expected) > 3
    for name in ("cells", "classes", "scores"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
