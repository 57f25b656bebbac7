"""Parts of the user: parameters of an NMS or a loss by their config keys, heads of a function."""

import pytest

from solo_d2.modeling.building import read_params
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, SOLOHead
from solo_d2.utils.errors import ConfigError
from tests.modeling.test_backbones import levels_config, step, trainable, without_gradient
from tests.modeling.tiny import tiny_config

pytestmark = pytest.mark.detectron2


INPUTS = ("masks", "labels", "scores")


def read(function, **own):
    node = tiny_config().MODEL.SOLO.NMS
    node.update(own)
    return read_params(function, INPUTS, "MODEL.SOLO.NMS", node, {"width": "SIGMA"})


@pytest.mark.parametrize(
    ("function", "params"),
    [
        (lambda masks, labels, scores: scores, {}),
        (lambda masks, labels, scores, *, radius, other=1: scores, {"radius": 3}),
        (lambda masks, labels, scores, radius, width=1: scores, {"radius": 3, "width": 2.0}),
        (lambda *inputs, **options: inputs, {}),
    ],
)
def test_parameters_take_the_keys_of_their_names(function, params):
    assert read(function, RADIUS=3) == params


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda masks, labels, scores, *, radius: scores, ("MODEL.SOLO.NMS.RADIUS", "'radius'")),
        (lambda masks: masks, ("MODEL.SOLO.NMS", "labels")),
        (lambda *, sigma: sigma, ("MODEL.SOLO.NMS", "masks")),
    ],
)
def test_wrong_signatures_name_key_and_parameter(function, named):
    with pytest.raises(ConfigError) as error:
        read(function)
    assert all(name in str(error.value) for name in named)


def test_a_head_may_be_made_by_a_function(monkeypatch):
    def make_head(cfg, input_shape):
        return SOLOHead(cfg, input_shape)

    monkeypatch.setitem(SOLO_HEAD_REGISTRY._obj_map, "make_head", make_head)
    model = step(levels_config((2, 3, 4), (3, 4), "make_head"))
    # It may read any level: p2 is not frozen, though this head does not read it.
    assert {name.split(".")[1] for name in without_gradient(model)} == {
        "fpn_lateral2",
        "fpn_output2",
    }
    assert any(name.startswith("head.mask_logits") for name in trainable(model))
