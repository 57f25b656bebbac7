import pytest
import torch

from solo_d2.ops.point_nms import point_nms
from tests.golden import load_golden

GOLDEN = load_golden("point_nms")


@pytest.mark.parametrize("case", ["random", "ties", "nonsquare", "one_cell"])
def test_equals_published(case):
    assert torch.equal(point_nms(GOLDEN[f"{case}.heat"]), GOLDEN[f"{case}.out"])


def test_equals_published_after_sigmoid():
    # The sigmoid differs in the last digit between versions of torch.
    result = point_nms(GOLDEN["logits.heat"].sigmoid())
    torch.testing.assert_close(result, GOLDEN["logits.out"], rtol=1e-6, atol=1e-7)


def test_looks_up_and_left_only():
    heat = torch.tensor([[0.5, 0.4], [0.3, 0.9]])[None, None]
    assert point_nms(heat)[0, 0].tolist() == [[0.5, 0.0], [0.0, pytest.approx(0.9)]]
