"""Variants of the SOLOv2 head; tests/modeling/test_solo_heads.py compares it with the published."""

import pytest
import torch

from solo_d2.modeling.heads import LocalSOLOv2Head, SOLOv2Head
from solo_d2.structures import GridCells
from solo_d2.utils.errors import ConfigError
from tests.golden import load_golden
from tests.modeling import test_solo_heads
from tests.modeling.test_solo_heads import FEATURES

pytestmark = pytest.mark.detectron2


def make_head(kind=SOLOv2Head, **changes):
    settings = {"num_grids": [10, 8, 6, 5, 4], "mask_in_features": FEATURES[:4]}
    settings |= {"mask_conv_dim": 32, "mask_out_channels": 32}
    return test_solo_heads.make_head(kind, **settings | changes)


@pytest.fixture(scope="module")
def golden():
    return load_golden("solov2_heads")


@pytest.fixture(scope="module")
def features(golden):
    return {name: golden[name] for name in FEATURES}


def test_level_features_equal_published(golden, features):
    resized = make_head().level_features(features)
    torch.testing.assert_close(resized[0][:1, :4], golden["split_p2"])
    torch.testing.assert_close(resized[4], golden["split_p6"])
    assert all(a is b for a, b in zip(resized[1:4], list(features.values())[1:4], strict=True))


@pytest.mark.parametrize(
    ("kernel_size", "kernel_coords", "mask_coords", "channels_out"),
    [(1, True, False, 32), (1, False, True, 96), (3, True, True, 96), (3, False, False, 32)],
)
def test_variants(features, kernel_size, kernel_coords, mask_coords, channels_out):
    head = make_head(
        kernel_size=kernel_size,
        kernel_coords=kernel_coords,
        mask_coords=mask_coords,
        mask_out_channels=channels_out,
    )
    outputs = head(features)
    assert outputs.kernel_params[0].shape == (2, kernel_size**2 * channels_out, 10, 10)
    masks = head.masks(outputs, 1, GridCells(torch.tensor([0, 99, 100, 240, 240])))
    assert masks.shape == (5, *outputs.mask_size) == (5, 32, 40)
    torch.testing.assert_close(masks[3], masks[4])
    masks.sum().backward()
    sum(logits.sum() for logits in outputs.class_logits).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_coordinates_change_the_kernels_alone(features):
    """Without coordinates a constant feature gives the same kernel everywhere inside."""
    flat = {name: torch.ones_like(feature) for name, feature in features.items()}
    for coords in (True, False):
        inner = make_head(kernel_coords=coords)(flat).kernel_params[0][0, :, 3:-3, 3:-3]
        varies = inner.flatten(1).std(dim=1).max() > 1e-7
        assert bool(varies) == coords


def test_starts_at_the_prior():
    head = make_head(num_classes=3)
    probs = head.class_logits.bias.sigmoid()
    torch.testing.assert_close(probs, torch.full((3,), 0.01))
    assert head.kernel_params.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_levels_without_cells_keep_out_of_the_backward_pass(features):
    head = make_head()
    gradients = []
    for known in ((), (1, 3)):
        outputs = head(features)
        for level in outputs.kernel_params:
            level.retain_grad()
        start = sum(side * side for side in head.num_grids[:3])
        cells = GridCells(torch.tensor([100, start]), levels=known)
        (factor,) = head.mask_factors(outputs, torch.tensor([0, 1]), cells)
        head.zero_grad()
        factor.kernels.square().sum().backward()
        reached = [i for i, x in enumerate(outputs.kernel_params) if x.grad is not None]
        assert reached == list(known or range(len(head.num_grids)))
        parameters = dict(head.kernel_tower.named_parameters())
        gradients.append({name: x.grad.clone() for name, x in parameters.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_local_masks_fall_with_the_squared_distance():
    head = make_head(kind=LocalSOLOv2Head).eval()
    torch.nn.init.zeros_(head.kernel_params.weight)
    torch.nn.init.zeros_(head.kernel_params.bias[:-1])  # leaves the sharpness, softplus(-2)
    features = {f"p{n}": torch.randn(1, 32, 128 >> n, 192 >> n) for n in range(2, 7)}
    with torch.no_grad():
        outputs = head(features)
        (factor,) = head.mask_factors(outputs, 0, GridCells(torch.tensor([0, 27, 99]), 0))
        masks = head.masks(outputs, 0, GridCells(torch.tensor([0, 27, 99]), 0))
    assert factor.maps.shape[1] == 36
    height, width = masks.shape[-2:]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    for mask, cell in zip(masks.logit(), (0, 27, 99), strict=True):
        row, column = (cell // 10 + 0.5) * height / 10 - 0.5, (cell % 10 + 0.5) * width / 10 - 0.5
        # coord_maps places the outermost pixels, not the borders, at -1 and 1.
        dx, dy = (x - column) * width / (width - 1), (y - row) * height / (height - 1)
        distance = (dx**2 + dy**2) / 16
        expected = -torch.nn.functional.softplus(torch.tensor(-2.0)) * distance
        shown = expected > -8  # float32 resolves these probabilities
        torch.testing.assert_close(mask[shown], expected[shown], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [{"kernel_size": 3}, {"mask_feature_type": "separate"}])
def test_local_masks_need_one_feature_and_small_kernels(change):
    with pytest.raises(ConfigError, match="LocalSOLOv2Head"):
        make_head(kind=LocalSOLOv2Head, **change)
