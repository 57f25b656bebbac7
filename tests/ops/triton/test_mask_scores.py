"""Scores of masks by Triton; without a GPU in its interpreter."""

import pytest
import torch

from tests.ops.test_binary_masks import check_scores, score_case

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("num", "parts"), [(0, 3), (1, 1), (17, 2), (40, 65)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_odd_sizes(num, parts, dtype):
    areas, *others = (x.to(DEVICE) for x in score_case(num, parts))
    check_scores(areas.to(dtype), *others, backend="triton")


def test_strided_sums():
    areas, soft_sums, class_scores, least_areas = (x.to(DEVICE) for x in score_case(34, 6))
    check_scores(
        areas[:, 1::2], soft_sums[:, 1::2], class_scores[1::2], least_areas[1::2], backend="triton"
    )
