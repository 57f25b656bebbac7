"""Matrix NMS with the arguments of AdelaiDet and mmdetection, on published values."""

import pytest
import torch

from solo_d2.ops.adapters import mask_matrix_nms, matrix_nms
from tests.golden import load_golden
from tests.ops.nms_cases import random_case
from tests.reference import nms as reference

GOLDEN = load_golden("matrix_nms")
VARIANTS = {
    "gaussian": {},
    "gaussian_sigma0.5": {"sigma": 0.5},
    "linear": {"kernel": "linear"},
}


def golden_case(case):
    names = ("masks", "labels", "scores", "sum_masks")
    return [GOLDEN[f"{case}_{name}"] for name in names]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["main", "n1", "same2", "diff2", "chain3"])
def test_adelaidets_order_gives_published_scores(case, variant):
    masks, labels, scores, areas = golden_case(case)
    found = matrix_nms(labels, masks.float(), areas, scores, **VARIANTS[variant])
    torch.testing.assert_close(found, GOLDEN[f"{case}_{variant}"], rtol=1e-5, atol=1e-6)
    options = VARIANTS[variant]
    positional = (options.get("sigma", 2.0), options.get("kernel", "gaussian"))
    assert torch.equal(matrix_nms(labels, masks, None, scores, *positional), found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mmdetections_order_gives_published_scores(variant):
    masks, labels, scores, areas = golden_case("main")
    shuffle = torch.randperm(len(masks), generator=torch.Generator().manual_seed(0))
    expected, order = GOLDEN[f"main_{variant}"].sort(descending=True, stable=True)
    inputs = masks.to(torch.uint8)[shuffle], labels[shuffle], scores[shuffle]
    found = mask_matrix_nms(*inputs, mask_area=areas[shuffle], **VARIANTS[variant])
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(shuffle[found[3]], order)
    assert torch.equal(found[1], labels[order])
    assert torch.equal(found[2], masks[order].to(torch.uint8))
    least = float(expected[9])
    some = mask_matrix_nms(*inputs, least - 1e-4, -1, -1, **VARIANTS[variant])
    assert len(some[0]) == int((expected >= least - 1e-4).sum()) >= 10
    few = mask_matrix_nms(*inputs, max_num=7, **VARIANTS[variant])
    for part, whole in zip(few, found, strict=True):
        assert torch.equal(part, whole[:7])


@pytest.mark.parametrize(
    ("filter_thr", "nms_pre", "max_num"), [(0.2, 9, 4), (-1, 12, 0), (2, 5, 3)]
)
def test_mmdetections_cuts(filter_thr, nms_pre, max_num):
    masks, labels, _ = random_case(num=20, seed=3, height=12, width=17, classes=2)
    scores = torch.linspace(0.95, 0.1, 20)
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    found = mask_matrix_nms(
        masks[shuffle], labels[shuffle], scores[shuffle], filter_thr, nms_pre, max_num
    )
    new = reference.matrix_nms(masks[:nms_pre], labels[:nms_pre], scores[:nms_pre])
    results = sorted(((s, i) for i, s in enumerate(new.tolist())), key=lambda x: (-x[0], x[1]))
    results = [(s, i) for s, i in results if filter_thr <= 0 or s >= filter_thr]
    results = results[: max_num or None]
    assert shuffle[found[3]].tolist() == [i for _, i in results]
    assert found[0].tolist() == pytest.approx([s for s, _ in results])


def test_no_masks():
    masks, labels, scores = torch.zeros(0, 4, 5), torch.zeros(0).long(), torch.zeros(0)
    assert matrix_nms(labels, masks, torch.zeros(0), scores).shape == (0,)
    found = mask_matrix_nms(masks, labels, scores, 0.1, 5, 5)
    assert [tuple(x.shape) for x in found] == [(0,), (0,), (0, 4, 5), (0,)]


def test_inputs_that_do_not_fit():
    masks, labels, scores, areas = golden_case("main")
    with pytest.raises(ValueError, match="areas"):
        matrix_nms(labels, masks, areas[1:], scores)
    with pytest.raises(ValueError, match="39 labels"):
        mask_matrix_nms(masks, labels[1:], scores)
    with pytest.raises(ValueError, match="areas"):
        mask_matrix_nms(masks, labels, scores, mask_area=areas[1:])
    with pytest.raises(ValueError, match="kernel"):
        matrix_nms(labels, masks, areas, scores, 2.0, "box")
