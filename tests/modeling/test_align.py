"""How the class branch brings a feature to its grid."""

import pytest
import torch

from solo_d2.modeling.heads.base import ALIGNMENTS


@pytest.mark.parametrize("name", sorted(ALIGNMENTS))
def test_a_flat_feature_stays(name):
    feature = torch.full((1, 3, 25, 34), 0.5)
    assert torch.equal(ALIGNMENTS[name](feature, (16, 16)), torch.full((1, 3, 16, 16), 0.5))


def test_region_grid_is_the_mean_of_the_cell():
    # 4 x 4 pixels a cell, away from the border, where samples are clamped to the last pixel.
    feature = torch.rand(1, 1, 16, 16).cumsum(2).cumsum(3)
    means = feature.unflatten(2, (4, 4)).unflatten(4, (4, 4)).mean(dim=(3, 5))
    result = ALIGNMENTS["region_grid"](feature, (4, 4))
    inner = (slice(None), slice(None), slice(1, 3), slice(1, 3))
    assert torch.allclose(result[inner], means[inner], rtol=0.01)
    sparse = ALIGNMENTS["interpolate"](feature, (4, 4))
    assert not torch.allclose(sparse[inner], means[inner], rtol=1e-4)
