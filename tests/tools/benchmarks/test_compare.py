"""`benchmark.py compare`, as far as it goes without a checkout of the peer."""

import copy
from argparse import Namespace

import pytest
import torch

from tests.modeling.tiny import image, tiny_model
from tools.benchmarks import compare
from tools.benchmarks.common import CPU
from tools.benchmarks.scenes import make_instances


def test_instances_are_matched_by_mask_and_class():
    model = tiny_model(sure=True).eval()
    other = copy.deepcopy(model)
    found = compare.compare_results(model, other, [image()])
    assert found["instances"] == found["equal"] > 0
    assert found["largest_score_difference"] == 0
    with torch.no_grad():
        other.head.class_logits.bias -= 0.01
    assert 0 < compare.compare_results(model, other, [image()])["largest_score_difference"] < 0.1


def test_a_step_trains_without_a_change():
    model = tiny_model()
    before = {name: value.clone() for name, value in model.named_parameters()}
    args = Namespace(size=(96, 128), seed=0)
    batch = [{"image": compare._noise(args, 0), "instances": make_instances(3, args.size, 80)}]
    compare._step(model, batch)()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert any(
        float(value.grad.abs().sum()) > 0 for value in model.parameters() if value.requires_grad
    )


def test_another_folder_is_refused(tmp_path):
    args = Namespace(peer=tmp_path, device=CPU)
    with pytest.raises(compare.ConfigError, match=r"is not a checkout of AdelaiDet.*solov2"):
        compare.load_peer(args)
