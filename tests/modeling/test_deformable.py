"""Deformable residual blocks and towers, by torchvision's operator."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from solo_d2.modeling.layers import DeformConv2d, conv_norm_relu
from tests.modeling.test_backbones import resnet_config


def randomize(module):
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        spread = 1.0 if "offset" in name else 0.2  # offsets of more than a pixel
        noise = spread * torch.randn(value.shape, generator=generator)
        value.copy_(noise.abs() + 0.5 if "var" in name else noise)
    return module.eval()


def by_torchvision(x, layer):
    """What the layer makes before its norm: offsets first, then the logits of the modulation."""
    where = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
    predicted = F.conv2d(x, layer.offset.weight, layer.offset.bias, **where)
    mask = predicted[:, 18:].sigmoid() if layer.modulated else None
    return deform_conv2d(x, predicted[:, :18].contiguous(), layer.weight, mask=mask, **where)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("depth", "groups"), [(18, 1), (50, 1), (50, 4)])
@torch.no_grad()
def test_residual_block(depth, groups, modulated):
    cfg = resnet_config(depth, deform=("res3",), modulated=modulated, groups=groups)
    block = randomize(build_backbone(cfg).bottom_up.res3[0])
    assert isinstance(block.conv2, DeformConv2d)
    x = torch.randn(1, block.conv1.in_channels, 5, 6, generator=torch.Generator().manual_seed(1))
    inner = F.relu(block.conv1(x))
    inner = block.conv2.norm(by_torchvision(inner, block.conv2))
    if depth > 18:
        inner = block.conv3(F.relu(inner))
    expected = F.relu(inner + block.shortcut(x))
    torch.testing.assert_close(block(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("deform", ["v1", "v2"])
@torch.no_grad()
def test_layer_of_a_tower(deform):
    layer = randomize(conv_norm_relu(34, 32, norm="GN", deform=deform))
    x = torch.randn(2, 34, 5, 4, generator=torch.Generator().manual_seed(1))
    expected = F.relu(layer.norm(by_torchvision(x, layer)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
