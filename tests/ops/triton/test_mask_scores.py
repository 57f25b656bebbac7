"""Scores of masks by Triton; without a GPU in its interpreter."""

import pytest
import torch

from tests.ops.test_binary_masks import check_scores, score_case

pytest.importorskip("triton")
from solo_d2.ops.triton.binary_masks import BLOCK_PIXELS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(areas, *others):
    scores, spans = check_scores(areas, *others, backend="triton")
    expected = []
    for sums, score in zip(areas, scores, strict=True):
        reached = sums.nonzero()[:, 0].tolist() if score > 0 else []
        first, last = (reached[0], reached[-1]) if reached else (len(sums), -1)
        expected.append([first * BLOCK_PIXELS, (last + 1) * BLOCK_PIXELS - 1])
    assert spans.dtype == torch.int32
    assert spans.tolist() == expected


@pytest.mark.parametrize(("num", "parts"), [(0, 3), (1, 1), (17, 2), (40, 65)])
def test_odd_sizes(num, parts):
    check(*(x.to(DEVICE) for x in score_case(num, parts)))


def test_few_pixels_and_strides():
    areas, soft_sums, class_scores, least_areas = (x.to(DEVICE) for x in score_case(34, 6))
    areas *= torch.rand(areas.shape, device=DEVICE) < 0.2
    check(areas[1::2], soft_sums[1::2], class_scores[1::2], least_areas[1::2] * 0)
