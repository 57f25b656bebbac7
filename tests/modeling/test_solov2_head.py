"""The SOLOv2 head against the published one, with its weights."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from solo_d2.modeling.heads import SOLOv2Head
from solo_d2.structures import GridCells
from tests.golden import levels, load_golden

pytestmark = pytest.mark.detectron2


FEATURES = ["p2", "p3", "p4", "p5", "p6"]


def make_head(channels=32, **changes):
    shapes = {f"p{n}": ShapeSpec(channels=channels, stride=2**n) for n in range(2, 7)}
    settings = {
        "in_features": FEATURES,
        "input_shape": shapes,
        "strides": [8, 8, 16, 32, 32],
        "num_grids": [10, 8, 6, 5, 4],
        "num_classes": 5,
        "num_convs": 2,
        "conv_dim": 64,
        "mask_in_features": FEATURES[:4],
        "mask_conv_dim": 64,
        "mask_out_channels": 32,
    }
    return SOLOv2Head(**{**settings, **changes})


def published_weights(golden):
    """The golden weights under our names; the order of parameters is the same."""
    state = {}
    for key, value in golden.items():
        head, _, name = key.partition(".")
        parts = name.split(".")
        if head == "ins_head" and "tower" in parts[0]:
            tower = parts[0].replace("cate", "class")
            norm = "norm." if int(parts[1]) % 3 else ""
            state[f"{tower}.{int(parts[1]) // 3}.{norm}{parts[2]}"] = value
        elif head == "ins_head":
            ours = {"cate_pred": "class_logits", "kernel_pred": "kernel_params"}[parts[0]]
            state[f"{ours}.{parts[1]}"] = value
        elif head == "mask_head" and parts[0] == "conv_pred":
            state[f"mask_feature.output.{'norm.' if parts[1] == '1' else ''}{parts[2]}"] = value
        elif head == "mask_head":
            norm = "norm." if parts[3] == "1" else ""
            state[f"mask_feature.levels.{parts[1]}.{parts[2][4:]}.{norm}{parts[4]}"] = value
    return state


@pytest.fixture(scope="module")
def golden():
    return load_golden("solov2_heads")


@pytest.fixture(scope="module")
def features(golden):
    return {name: golden[name] for name in FEATURES}


def test_forward_equals_published(golden, features):
    head = make_head()
    head.load_state_dict(published_weights(golden), strict=True)
    with torch.no_grad():
        outputs = head(features)
    close = {"rtol": 1e-5, "atol": 1e-5}  # values of size 1 to 5
    for ours, expected in zip(outputs.class_logits, levels(golden, "cate_pred"), strict=True):
        torch.testing.assert_close(ours, expected, **close)
    for ours, expected in zip(outputs.kernel_params, levels(golden, "kernel_pred"), strict=True):
        torch.testing.assert_close(ours, expected, **close)
    torch.testing.assert_close(outputs.mask_features[0], golden["mask_pred"], **close)


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
