"""What a config's model is, also before this project's models are registered."""

import pytest
from detectron2.modeling import META_ARCH_REGISTRY

from solo_d2 import ConfigError
from solo_d2.config.models import is_panoptic, is_solo, model_class
from solo_d2.data.mapper import SOLODatasetMapper
from solo_d2.modeling import SOLO, PanopticSOLO
from tests.modeling.tiny import panoptic_config, tiny_config

OWN = {"SOLO": SOLO, "PanopticSOLO": PanopticSOLO}


@pytest.fixture
def without_own(monkeypatch):
    others = {name: model for name, model in META_ARCH_REGISTRY if name not in OWN}
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", others)


@pytest.mark.parametrize("make_config", [tiny_config, panoptic_config])
@pytest.mark.usefixtures("without_own")
def test_data_needs_no_registered_model(make_config):
    cfg = make_config()
    assert is_solo(cfg)
    assert is_panoptic(cfg) == OWN[cfg.MODEL.META_ARCHITECTURE].predicts_stuff
    SOLODatasetMapper(cfg, is_train=True)


@pytest.mark.usefixtures("without_own")
@pytest.mark.parametrize("name", ["SOLO", "Mine"])
def test_a_model_must_be_registered(name):
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE = name
    with pytest.raises(ConfigError, match="MODEL.META_ARCHITECTURE"):
        model_class(cfg)


def test_models_of_detectron2():
    cfg = tiny_config()
    for name, panoptic in (("GeneralizedRCNN", False), ("PanopticFPN", True)):
        cfg.MODEL.META_ARCHITECTURE = name
        assert not is_solo(cfg)
        assert is_panoptic(cfg) == panoptic
