"""Parameters of an NMS or a loss come from the config keys of their names."""

import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.modeling.building import read_params  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.modeling.tiny import tiny_config  # noqa: E402

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
