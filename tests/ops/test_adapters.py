"""Matrix NMS with the arguments of AdelaiDet and mmdetection, on published values."""

from functools import partial

import pytest
import torch

from solo_d2.ops.adapters import mask_matrix_nms, matrix_nms
from tests.ops.nms_cases import GOLDEN, VARIANTS, golden_case, random_case
from tests.reference import nms as reference

AREAS = GOLDEN["main_sum_masks"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_adelaidets_order_gives_published_scores(variant):
    masks, labels, scores = golden_case("main")
    options = VARIANTS[variant]
    found = matrix_nms(labels, masks.float(), AREAS, scores, **options)
    torch.testing.assert_close(found, GOLDEN[f"main_{variant}"], rtol=1e-5, atol=1e-6)
    positional = (options.get("sigma", 2.0), options["kernel"])
    assert torch.equal(matrix_nms(labels, masks, None, scores, *positional), found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mmdetections_order_gives_published_scores(variant):
    masks, labels, scores = golden_case("main")
    shuffle = torch.randperm(len(masks), generator=torch.Generator().manual_seed(0))
    expected, order = GOLDEN[f"main_{variant}"].sort(descending=True, stable=True)
    inputs = masks.to(torch.uint8)[shuffle], labels[shuffle], scores[shuffle]
    found = mask_matrix_nms(*inputs, mask_area=AREAS[shuffle], **VARIANTS[variant])
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(shuffle[found[3]], order)
    assert torch.equal(found[1], labels[order])
    assert torch.equal(found[2], masks[order].to(torch.uint8))


@pytest.mark.parametrize(
    ("filter_thr", "nms_pre", "max_num"), [(0.2, 9, 4), (-1, 12, 0), (2, 5, 3), (-1, -1, -1)]
)
def test_mmdetections_cuts(filter_thr, nms_pre, max_num):
    masks, labels, _ = random_case(num=20, seed=3, height=12, width=17, classes=2)
    case = masks, labels, torch.linspace(0.95, 0.1, 20)
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    found = mask_matrix_nms(*(x[shuffle] for x in case), filter_thr, nms_pre, max_num)
    first = slice(nms_pre if nms_pre > 0 else None)
    new = reference.matrix_nms(*(x[first] for x in case)).tolist()
    results = sorted(enumerate(new), key=lambda pair: (-pair[1], pair[0]))
    results = [(i, s) for i, s in results if filter_thr <= 0 or s >= filter_thr]
    results = results[: max_num if max_num > 0 else None]
    assert shuffle[found[3]].tolist() == [i for i, _ in results]
    assert found[0].tolist() == pytest.approx([s for _, s in results])


def test_no_masks():
    masks, labels, scores = torch.zeros(0, 4, 5), torch.zeros(0).long(), torch.zeros(0)
    assert matrix_nms(labels, masks, torch.zeros(0), scores).shape == (0,)
    found = mask_matrix_nms(masks, labels, scores, 0.1, 5, 5)
    assert [tuple(x.shape) for x in found] == [(0,), (0,), (0, 4, 5), (0,)]


def test_inputs_that_do_not_fit():
    masks, labels, scores = golden_case("main")
    for function, arguments, named in (
        (matrix_nms, (labels, masks, AREAS[1:], scores), "areas"),
        (mask_matrix_nms, (masks, labels[1:], scores), "39 labels"),
        (partial(mask_matrix_nms, mask_area=AREAS[1:]), (masks, labels, scores), "areas"),
        (matrix_nms, (labels, masks, AREAS, scores, 2.0, "box"), "kernel"),
    ):
        with pytest.raises(ValueError, match=named):
            function(*arguments)
