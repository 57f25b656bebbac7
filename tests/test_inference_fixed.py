"""Decoding with fixed shapes finds what decoding as needed finds, without waits for the device."""

import importlib
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from solo_d2.inference import NMS, MaskDecoder, build_nms
from solo_d2.ops.candidates import class_probabilities, filter_scores, score_keys, top_scores
from solo_d2.structures import Candidates, GridCells, HeadOutputs, Predictions, map_tensors
from tests.fakes import FixedMasks, kernel_outputs
from tests.test_inference import NMS_PARAMS, golden_outputs, make_decoder
from tests.test_inference_finite import SPOILT, assert_finite, decoder, head_outputs
from tools.benchmarks.head_outputs import NUM_GRIDS, make_outputs

SIZES = [(46, 62)] * 2, [(44, 60)] * 2


def both_ways(made: MaskDecoder, outputs: HeadOutputs, *image_and_output_sizes):
    expected, found = (
        replace(made, fixed=fixed).decode(outputs, *image_and_output_sizes)
        for fixed in (False, True)
    )
    return expected, found


def assert_equal(expected: Predictions, found: Predictions, *, exact: bool = True):
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0 if exact else 1e-6)
    assert torch.equal(found.classes, expected.classes)
    assert found.masks.shape == expected.masks.shape
    assert (found.masks != expected.masks).sum() <= (0 if exact else 5)
    assert found.boxes.shape == expected.boxes.shape
    if exact:
        assert torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("nms", NMS)
@pytest.mark.parametrize("product", [False, True])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    spoilt=st.one_of(st.just([]), SPOILT),
    kernel=st.sampled_from(["gaussian", "linear"]),
    agnostic=st.booleans(),
    lanes=st.sampled_from([1, 5, 20, 1000]),
    topk=st.sampled_from([1, 4, 500]),
    score_thresh=st.sampled_from([0.0, 0.3, 0.9]),
    ties=st.booleans(),
)
def test_any_inputs(nms, product, seed, spoilt, kernel, agnostic, lanes, topk, score_thresh, ties):
    """Few and many candidates, ties, NaN and infinity.

    To the last bit, unless there is an exponential, whose last bit depends on the size of the
    matrix. Then ties would end in any order.
    """
    exact = kernel == "linear" or nms in ("hard", "fast")
    # Where sums overflow depends on their order, and so on the size too.
    spoilt = [x for x in spoilt if exact and abs(x[2]) != 3e38]
    made = decoder(nms, "torch", product, kernel=kernel, class_agnostic=agnostic)
    made = replace(made, lanes=lanes, pre_nms_topk=topk, score_thresh=score_thresh)
    outputs = head_outputs(seed, spoilt)
    if exact and (product or ties):  # products of whole numbers do not round
        levels = [[x.round() for x in y] for y in (outputs.class_logits, outputs.kernel_params)]
        outputs = kernel_outputs(*levels, outputs.mask_feature.round())
    if not product:
        every = GridCells(torch.arange(len(made.cell_levels)))
        masks = torch.stack([made.head.masks(outputs, image, every) for image in (0, 1)])
        masks = (masks * 256).round() / 256  # so that sums do not round either
        made = replace(made, head=FixedMasks(masks, [4, 4], [0, 0]))
    for a, b in zip(*both_ways(made, outputs, *SIZES), strict=True):
        assert_equal(a, b, exact=exact)


@pytest.mark.parametrize(
    ("part", "product", "fixed"),
    [
        *(("kernels", False, True), ("kernels", True, True)),
        *((part, True, False) for part in ("classes", "kernels", "feature")),
    ],
)
def test_triton_finds_what_the_reference_finds(part, product, fixed):
    pytest.importorskip("triton")
    outputs = head_outputs(1, [(part, 0.1, float("nan"))])
    outputs = map_tensors(lambda x: x[:1], outputs)
    options = {"pre_nms_topk": 12, "lanes": 20, "max_detections": 4}  # the interpreter is slow
    torchs, tritons = (
        replace(decoder("matrix", backend, product), **options, fixed=fixed * (backend == "triton"))
        for backend in ("torch", "triton")
    )
    sizes = [(46, 62)], [(22, 30)]
    (expected,), (found,) = (made.decode(outputs, *sizes) for made in (torchs, tritons))
    assert len(expected.scores) == (4 if part != "feature" else 0)
    assert_equal(expected, found, exact=False)
    assert_finite([found])


def test_an_image_of_the_batch_with_more_candidates_than_lanes_is_decoded_as_needed(monkeypatch):
    outputs = head_outputs(0, [])
    for logits in outputs.class_logits:
        logits[0] -= 3  # few candidates in the first image
    made = replace(decoder("matrix", "torch", product=True), pre_nms_topk=10, lanes=10)
    eager = []
    real = MaskDecoder.find
    monkeypatch.setattr(MaskDecoder, "find", lambda *args: eager.append(args[2]) or real(*args))
    replace(made, fixed=True).decode(outputs, *SIZES)
    assert eager == [1]
    replace(made, fixed=True, lanes=1000).decode(outputs, *SIZES)
    assert eager == [1]
    replace(made, fixed=True, lanes=0).decode(outputs, *SIZES)
    assert eager == [1, 0, 1]


def test_more_candidates_than_lanes_that_can_not_matter_need_no_second_decoding():
    """As in the early cut: the best so far are above all class scores that are left."""
    logits = torch.full((1, 1, 8, 8), -1.0)
    logits[0, 0, ::2, ::2] = torch.linspace(5, 6, 16).view(4, 4)
    outputs = kernel_outputs([logits], [torch.full((1, 1, 8, 8), 9.0)], torch.ones(1, 1, 8, 8))
    made = make_decoder((8,), (8,), pre_nms_topk=4, lanes=8, fixed=True)
    assert len(filter_scores(logits.sigmoid().flatten(2)[0].T, 0.1)[0]) > 8
    _, counts = made.decode_lanes(outputs, [((32, 32), (32, 32))])
    assert counts.tolist() == [4]


def test_results_do_not_hold_the_memory_of_all_lanes():
    result = make_decoder(fixed=True).decode(golden_outputs(), [(119, 151)] * 2, [(50, 60)] * 2)[0]
    assert 0 < len(result.scores) < 100
    small = replace(result, masks=result.masks.repeat(9, 1, 1)).first(2)
    assert small.masks.untyped_storage().nbytes() == 2 * 50 * 60


LOGITS = (-9.0, -1.0, -0.5, 0.0, 2.0, 90.0, float("inf"), float("-inf"), float("nan"))


def assert_best(class_logits, num, thresh, backend):
    expected = filter_scores(class_probabilities(class_logits)[0], thresh)
    expected = Candidates(*expected).best(num)
    (keys,) = score_keys(class_logits, thresh, backend=backend)
    found = Candidates(*top_scores(keys, class_logits[0].shape[1], num))
    assert len(found) == min(num, len(keys))
    torch.testing.assert_close(found.scores[: len(expected)], expected.scores)
    for name in ("cells", "classes"):
        assert torch.equal(getattr(found, name)[: len(expected)], getattr(expected, name))
    assert (found.scores[len(expected) :] == 0).all()
    assert (found.cells * 3 + found.classes).unique().numel() == len(found)


@given(
    values=st.lists(st.sampled_from(LOGITS), min_size=39, max_size=39),
    num=st.integers(1, 50),
    thresh=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
@settings(deadline=None)
def test_top_scores_are_the_best_candidates_in_their_order(values, num, thresh):
    levels = torch.tensor(values).split([27, 12])
    levels = [x.view(1, 3, side, side) for x, side in zip(levels, (3, 2), strict=True)]
    assert_best(levels, num, thresh, "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sides", [(1,), (5, 3), (12, 6, 2)])
def test_top_scores_by_triton(sides, dtype):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    for values in (torch.tensor(LOGITS), torch.randn(500, generator=generator)):
        index = [torch.randint(len(values), (1, 3, x, x), generator=generator) for x in sides]
        assert_best([values[x].to(dtype) for x in index], 60, 0.3, "triton")


def test_a_foreign_nms_sees_empty_masks_behind_the_candidates():
    seen = []

    def nms(masks, labels, scores):
        seen.append((masks, scores))
        return scores

    outputs = head_outputs(3, [])
    expected, found = both_ways(make_decoder((6, 4), (8, 8), nms=nms), outputs, *SIZES)
    for a, b in zip(expected, found, strict=True):
        assert_equal(a, b)
    masks, scores = seen[-1]
    assert len(scores) == 3 * (6 * 6 + 4 * 4)
    assert (scores == 0).any()
    assert not masks[scores == 0].any()
    assert masks[scores > 0].flatten(1).any(dim=1).all()


class Watch(TorchDispatchMode):
    """Counts what runs on the device, and raises for what the host would wait for."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors}
        if (
            name in WAITS
            or any(x is not None and x.dtype == torch.bool for x in indices)
            or len(devices) > 1  # a copy from pageable memory waits too
        ):
            raise AssertionError(f"{func} waits for the device: {devices}")
        if func.namespace == "aten" and not func.is_view and name not in NO_LAUNCH:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


WAITS = {
    *("nonzero", "nonzero_static", "_unique2", "unique_dim", "unique_consecutive"),
    *("_local_scalar_dense", "masked_select", "is_nonzero", "equal", "allclose", "lift_fresh"),
}
NO_LAUNCH = {
    *("promote_types", "empty", "empty_like", "new_empty", "empty_strided"),
    *("detach", "_unsafe_view"),
}
KERNELS = ("binary_masks", "class_scores", "dynamic_masks", "mask_overlap", "mask_scores")
KERNELS += ("nms_decay", "nms_greedy", "paste_masks")


def launches(made, outputs, monkeypatch):
    """What `decode_lanes` runs with Triton kernels, for a GPU that is made up."""
    kernels = Counter()
    for name in KERNELS:
        module = importlib.import_module(f"solo_d2.ops.triton.{name}")
        monkeypatch.setattr(
            module, "launch", lambda kernel, *args, **kwargs: kernels.update([kernel.__name__])
        )
    for module in ("binary_masks", "candidates", "mask_iou", "nms_family", "paste_masks"):
        monkeypatch.setattr(f"solo_d2.ops.{module}.choose_backend", lambda *args: "triton")
    with FakeTensorMode() as mode:
        outputs = map_tensors(on_gpu := lambda x: mode.from_tensor(x).to("cuda"), outputs)
        places = {name: on_gpu(getattr(made, name)) for name in ("cell_levels", "strides")}
        made = replace(made, fixed=True, **places)
        with Watch() as watch:
            made.decode_lanes(outputs, [((800, 1216), (480, 640))])
    return watch.counts, kernels


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
@pytest.mark.parametrize("nms", NMS)
def test_never_waits_for_the_device(nms, monkeypatch):
    pytest.importorskip("triton")
    outputs = make_outputs(50, (200, 304), 256, 80, 50)
    made = make_decoder(NUM_GRIDS, nms=build_nms(nms, NMS_PARAMS))
    operators, kernels = launches(made, outputs, monkeypatch)
    print(f"{nms}: {operators.total()} operators {dict(operators)}, kernels {dict(kernels)}")
    assert operators.total() <= 39
    assert kernels.total() <= 10
