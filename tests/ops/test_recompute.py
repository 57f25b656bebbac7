"""Recomputed values have exactly the same gradients, and are not kept for them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solo_d2.ops.recompute import Recomputing, recomputed


class Network(nn.Module):
    """Two convolutions with a GroupNorm and a ReLU between them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Conv2d(4, 2, 3),
        )
        self.calls = []

    def normalize(self, x):
        self.calls.append(x.dtype)
        return self.norm(x).relu_()

    def forward(self, x, **options):
        return self.second(recomputed(self.normalize, self.first(x), **options))


def gradients(network, context, x, **options):
    with context:
        y = network(x, **options)
    return torch.autograd.grad(y.square().sum(), list(network.parameters()))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


IMAGES = torch.rand(3, 3, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"by_image": True}], ids=str)
def test_gradients_are_the_same(network, dtype, options):
    plain = copy.deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = gradients(network, Recomputing(), IMAGES, **options)
        expected = gradients(plain, torch.enable_grad(), IMAGES, **options)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if options else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, expected, **tolerance)
    assert set(network.calls) == {dtype}
    assert len(plain.calls) == 1
    # The forward pass, once more for the gradient of the norm and once for that of the convolution.
    assert len(network.calls) == 2 * (len(IMAGES) if options else 1) + 1


def test_nothing_is_computed_twice_without_gradients(network):
    with Recomputing(), torch.no_grad():
        network(IMAGES)
    assert len(network.calls) == 1
    network.calls.clear()
    gradients(network, torch.enable_grad(), IMAGES)  # the context has ended
    assert len(network.calls) == 1


def test_a_tensor_that_was_changed_in_place_is_not_used(network):
    with Recomputing():
        y = recomputed(network.normalize, network.first(IMAGES))
        y.mul_(2)
        z = network.second(y)
    changed = torch.autograd.grad(z.sum(), network.second.weight)[0]
    doubled = 2 * network.normalize(network.first(IMAGES))
    expected = torch.autograd.grad(network.second(doubled).sum(), network.second.weight)[0]
    torch.testing.assert_close(changed, expected)

    with Recomputing():
        weight = nn.Parameter(torch.ones(2, 2))
        y = F.linear(x := torch.ones(1, 2), weight)
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"shape \(1, 2\).*in-place"):
        y.sum().backward()
