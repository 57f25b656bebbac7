"""Copies of results to the CPU."""

import pytest
import torch

from solo_d2.ops.host_copies import to_host


def test_tensors_of_the_cpu_stay_what_they_are():
    tensors = [torch.rand(3, 4).T, torch.zeros(0, 5, dtype=torch.bool)]
    assert all(x is y for x, y in zip(to_host(tensors), tensors, strict=True))
    assert to_host([]) == []


@pytest.mark.gpu
def test_tensors_of_a_gpu_are_copied_and_pin_nothing():
    tensors = [torch.rand(3, 4).T, torch.rand(50, 60, 70) > 0.5, torch.arange(3)]
    found = to_host([x.cuda() for x in tensors] + tensors)
    for copy, expected in zip(found, tensors * 2, strict=True):
        assert torch.equal(copy, expected)
        assert copy.device.type == "cpu"
        assert not copy.is_pinned()
