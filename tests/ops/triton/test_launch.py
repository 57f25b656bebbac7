"""Kernels run on the device of their tensors."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from solo_d2.ops.triton import launch as module


def test_current_device_is_that_of_the_first_argument(monkeypatch):
    calls = []

    @contextmanager
    def device_of(tensor):
        calls.append(("enter", tensor.device.type))
        yield
        calls.append(("exit", tensor.device.type))

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: calls.append((grid, *args[1:], options))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    module.launch(Kernel(), (2, 3), torch.empty(1, device="meta"), 5, num_warps=8)
    assert calls == [("enter", "meta"), ((2, 3), 5, {"num_warps": 8}), ("exit", "meta")]


def test_nothing_else_launches():
    """A launch is `kernel[grid](...)`, a call of a subscript."""
    for path in Path(module.__file__).parent.glob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        launches = [node for node in calls if isinstance(node.func, ast.Subscript)]
        assert len(launches) == (path.stem == "launch"), path


@pytest.mark.gpu
def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    from solo_d2.ops.mask_iou import mask_overlaps

    masks = torch.rand(20, 30, 40) > 0.5
    groups = torch.zeros(20, dtype=torch.int64)
    expected = mask_overlaps(masks, groups, backend="torch").triu()
    found = mask_overlaps(masks.to("cuda:1"), groups.to("cuda:1"), backend="triton")
    assert torch.equal(found.cpu(), expected)
