"""Overlaps of two sets of masks, and pairs of them."""

import pytest
import torch

from solo_d2.ops.mask_matching import match_pairs, pairwise_mask_iou


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (4, 7)])
def test_pairwise_iou_by_definition(n, m):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(k, 9, 11, generator=generator) > 0.6 for k in (n, m))
    if n:
        a[0] = False
    found = pairwise_mask_iou(a, b)
    assert found.shape == (n, m)
    for i in range(n):
        for j in range(m):
            union = (a[i] | b[j]).sum()
            expected = (a[i] & b[j]).sum() / union if union else torch.tensor(0.0)
            torch.testing.assert_close(found[i, j], expected.float())


def test_best_pairs_first_each_once_and_ties_in_order():
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.85, 0.3, 0.2], [0.9, 0.0, 0.3]])
    assert match_pairs(similarity, 0.25) == [(0, 0), (1, 1), (2, 2)]
    assert match_pairs(similarity, 0.31) == [(0, 0)]
    assert match_pairs(torch.zeros(0, 4), 0.5) == []
    assert match_pairs(torch.zeros(3, 0), 0.5) == []
