"""Multiply-adds are those counted by hand."""

import pytest
import torch
from torch import nn

from solo_d2.modeling.layers import DeformConv2d
from tests.modeling.tiny import tiny_config, tiny_model
from tools.benchmarks import complexity


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_convolution_by_hand(device):
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2).to(device)
    x = torch.empty(2, 6, 10, 12, device=device)
    # 2 images of 5x6 outputs in 8 channels, each of 3 inputs at 9 positions.
    assert complexity.count_multiply_adds(conv, x) == 2 * 5 * 6 * 8 * 3 * 9


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("modulated", [False, True])
def test_one_deformable_convolution_by_hand(device, modulated):
    conv = DeformConv2d(6, 8, 3, stride=2, padding=1, groups=2, modulated=modulated).to(device)
    x = torch.zeros(2, 6, 10, 12, device=device)
    offsets = 2 * 5 * 6 * (27 if modulated else 18) * 6 * 9
    assert complexity.count_multiply_adds(conv, x) == 2 * 5 * 6 * 8 * 3 * 9 + offsets


def test_a_model_is_the_sum_of_its_convolutions():
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 75  # 75x100, padded to 96x128
    counted = 0

    def count(module, _inputs, output):
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    model = tiny_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.head(model.backbone(torch.zeros(1, 3, 96, 128)))
    measured = complexity.measure(cfg)
    assert measured.multiply_adds == counted > 0
    assert measured.parameters == sum(p.numel() for p in model.parameters())
    assert measured.input_size == (96, 128)
    assert cfg.MODEL.DEVICE == "cpu"
