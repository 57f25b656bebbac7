"""Inference: published instances at every stage, wanted deviations, cuts that change nothing."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from solo_d2.inference import MaskDecoder, build_nms
from solo_d2.ops.candidates import class_probabilities, filter_scores
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.structures import Candidates, cell_levels
from tests.fakes import CountingHead, FixedMasks, kernel_outputs
from tests.golden import levels, load_golden
from tools.benchmarks.common import peak_memory
from tools.benchmarks.head_outputs import KernelHead

GOLDEN = load_golden("solov2_inference")
NMS_PARAMS = {
    "kernel": "gaussian",
    "sigma": 2.0,
    "thresh": 0.5,
    "class_agnostic": False,
    "backend": "auto",
}
RUNS = {
    "": {},
    "linear.": {"nms": build_nms("matrix", {**NMS_PARAMS, "kernel": "linear"})},
    "masknms.": {"nms": build_nms("hard", NMS_PARAMS)},
    "limits.": {"pre_nms_topk": 20, "max_detections": 10},
    "empty_score.": {"score_thresh": 0.99},
    "empty_update.": {"keep_thresh": 0.9999},
    "ratio3.": {},
}


def golden_outputs():
    logits, kernels = levels(GOLDEN, "cate_logits"), levels(GOLDEN, "kernel_pred")
    return kernel_outputs(logits, kernels, GOLDEN["mask_pred"])


def make_decoder(num_grids=(10, 8, 6, 5, 4), strides=(8, 8, 16, 32, 32), **changes):
    settings = {
        "head": KernelHead((4,) * len(num_grids)),
        "cell_levels": cell_levels(num_grids),
        "strides": torch.tensor(strides).float(),
        "nms": build_nms("matrix", NMS_PARAMS),
    }
    return MaskDecoder(**{**settings, **changes})


def sizes(run, name):
    return [tuple(GOLDEN[f"{run}img{b}.{name}"].tolist()) for b in (0, 1)]


@pytest.mark.parametrize(
    ("has_factors", "fixed", "lanes"),
    [(False, False, 0), (True, False, 0), (True, True, 1000), (True, True, 40)],
)
@pytest.mark.parametrize("backend", ["torch", "tiled"])
@pytest.mark.parametrize("run", RUNS)
def test_instances_equal_published(run, backend, has_factors, fixed, lanes):
    head = KernelHead((4,) * 5, has_factors=has_factors)
    decoder = make_decoder(**RUNS[run], backend=backend, head=head, fixed=fixed, lanes=lanes)
    image_sizes, output_sizes = sizes(run, "image_size"), sizes(run, "output_size")
    results = decoder.decode(golden_outputs(), image_sizes, output_sizes)
    for image, (result, size) in enumerate(zip(results, output_sizes, strict=True)):
        prefix = f"{run}img{image}."
        torch.testing.assert_close(result.scores, GOLDEN[prefix + "scores"], rtol=0, atol=1e-5)
        assert torch.equal(result.classes, GOLDEN[prefix + "classes"].long())
        # A small image in a large batch: AdelaiDet puts its masks at the wrong place.
        name = "stride4_masks" if run == "ratio3." else "pred_masks"
        expected = GOLDEN[prefix + name]
        assert result.masks.shape == expected.shape == (len(result.scores), *size)
        assert (result.masks != expected).sum() <= 5
        assert torch.equal(result.boxes, mask_boxes(result.masks))
        assert len(result.scores) == 0 or not run.startswith("empty")
        dtypes = [getattr(result, name).dtype for name in ("masks", "boxes", "classes")]
        assert dtypes == [torch.bool, torch.float32, torch.int64]


@pytest.mark.parametrize("run", ["", "linear.", "masknms.", "limits."])
@pytest.mark.parametrize("image", [0, 1])
def test_candidates_before_and_after_nms_equal_published(run, image):
    decoder = make_decoder(**RUNS[run])
    outputs = golden_outputs()
    found = Candidates(*filter_scores(class_probabilities(outputs.class_logits)[image], 0.1))
    found = decoder.score_masks(outputs, image, found)
    prefix = f"{run}img{image}."
    expected = GOLDEN[prefix + "nms_in.scores"]
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-5)
    assert torch.equal(found.classes, GOLDEN[prefix + "nms_in.labels"].long())
    areas = found.masks.sum(dim=(1, 2)).float()
    assert torch.equal(areas, GOLDEN[prefix + "nms_in.sum_masks"].float())
    if not run:
        assert torch.equal(found.masks, GOLDEN[prefix + "nms_in.masks"])
    scores = decoder.nms(found.masks, found.classes, found.scores)
    expected = GOLDEN[prefix + "nms_out"]
    if run == "masknms.":
        assert torch.equal(scores > 0, expected.bool())
    else:
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("topk", [1, 3, 5, 20, 50])
def test_early_cut_makes_fewer_masks_and_changes_nothing(topk):
    """Making masks of the best classes only, as long as that can't matter, is exact."""
    head, outputs = CountingHead((4,) * 5), golden_outputs()
    found = Candidates(*filter_scores(class_probabilities(outputs.class_logits)[0], 0.01))
    everything = make_decoder(pre_nms_topk=10_000).score_masks(outputs, 0, found)
    cut = make_decoder(pre_nms_topk=topk, head=head).score_masks(outputs, 0, found)
    assert len(everything) > 50
    assert torch.equal(cut.cells, everything.cells[:topk])
    assert torch.equal(cut.masks, everything.masks[:topk])
    assert topk <= sum(head.made)
    assert topk > 5 or sum(head.made) < len(found) / 2


def test_masks_in_small_chunks_change_nothing(monkeypatch):
    decoder, outputs = make_decoder(), golden_outputs()
    image_sizes = sizes("", "image_size")
    whole = decoder.decode(outputs, image_sizes, image_sizes)
    monkeypatch.setattr("solo_d2.inference.MASK_CHUNK_ELEMENTS", 3 * 32 * 40)
    monkeypatch.setattr("solo_d2.ops.paste_masks.ROWS", 7)
    monkeypatch.setattr("solo_d2.ops.paste_masks.COLUMNS", 5)
    parts = decoder.decode(outputs, image_sizes, image_sizes)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.scores, b.scores)
        assert torch.equal(a.masks, b.masks)


def test_cells_of_several_mask_groups_keep_their_order():
    """Also masks of a head without factors are resized to the finest stride."""
    probs = torch.tensor([0.0, 1.0])[None, :, None, None].expand(1, 2, 4, 4)
    head = FixedMasks(probs, (4, 8), (0, 1))
    outputs = kernel_outputs([], [], torch.zeros(1, 1, 8, 8))
    decoder = make_decoder(num_grids=(1, 1), strides=(8, 8), head=head)
    masks = torch.cat(list(decoder.masks(outputs, 0, torch.tensor([1, 0, 1]))))
    assert masks.shape == (3, 8, 8)
    assert masks[:, 0, 0].tolist() == [1, 0, 1]


def test_a_cell_may_give_several_classes_and_makes_one_mask():
    logits = [torch.tensor([[[[4.0]], [[3.0]], [[-9.0]]]])]
    outputs = kernel_outputs(logits, [torch.ones(1, 1, 1, 1)], torch.ones(1, 1, 8, 8))
    head = CountingHead([4])
    decoder = make_decoder(num_grids=(1,), strides=(8,), head=head)
    (result,) = decoder.decode(outputs, [(32, 32)], [(32, 32)])
    assert head.made[0] == 1  # to be scored; then those that are kept are made
    assert result.classes.tolist() == [0, 1]
    assert (result.scores[0] > result.scores[1]).item()
    assert torch.equal(result.masks[0], result.masks[1])


def _measure(num, *size):
    from tools.benchmarks import head_outputs, postprocess

    torch.set_num_threads(2)
    way, cpu = postprocess.Ours(torch.device("cpu")), torch.device("cpu")
    outputs, found = head_outputs.make_outputs(num, (200, 304), 256, 80, num), []
    few = head_outputs.make_outputs(8, (20, 20), 8, 80, 8)
    postprocess.decode(way, few, (80, 80), (80, 80))  # libraries are loaded
    peak = peak_memory(
        lambda: found.append(postprocess.decode(way, outputs, (800, 1216), size)), cpu
    )
    return peak, found[0].masks.numel()


def memory_of(num, *size):
    """Bytes that decoding takes beyond what was there, and elements of its masks.

    In a process of its own: what other threads and the allocator hold would be counted too.
    """
    pytest.importorskip("pycocotools")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        peak, elements = pool.submit(_measure, num, *size).result()
    if peak is None:
        pytest.skip("the peak is available on Linux only")
    return peak, elements


def test_memory_is_as_documented():
    peak, result = memory_of(600, 480, 640)
    masks = (600 + 500) * 200 * 304
    assert peak < result + masks + (2 * 24 + 2 * 8) * 2**20


@pytest.mark.reliability
def test_twelve_megapixels_fit_into_four_gigabytes():
    """With the 0.6 GB of a process that has imported everything."""
    peak, result = memory_of(900, 3000, 4000)
    assert result == 100 * 3000 * 4000
    assert peak < 3.4 * 10**9
