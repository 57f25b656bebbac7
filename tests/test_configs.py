"""Every YAML loads, builds and takes a step; every key of ours is read and none is unknown."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from solo_d2 import add_solo_config  # noqa: E402
from solo_d2.engine import Trainer  # noqa: E402
from tests.modeling.tiny import image, tiny_config  # noqa: E402

CONFIGS = sorted(
    str(path) for path in Path("configs").rglob("*.yaml") if path.parent.name != "base"
)


def load(file):
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.merge_from_file(file)  # refuses unknown keys
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SOLO.NUM_CLASSES = cfg.MODEL.SOLO.NUM_CLASSES or 5
    return cfg


@pytest.mark.parametrize("file", CONFIGS)
def test_builds_and_steps(file):
    cfg = load(file)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model([image(), image(num=0)])
    sum(losses.values()).backward()
    optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad():
        result = model.eval()([image()])[0]["instances"]
    assert result.pred_masks.shape[1:] == (96, 128)


class Recorder(CfgNode):
    """A node that notes the keys that are read."""

    def __init__(self, node, seen, prefix):
        super().__init__()
        for key, value in node.items():
            path = f"{prefix}.{key}"
            if isinstance(value, CfgNode):
                value = Recorder(value, seen, path)
            dict.__setitem__(self, key, value)
        self.__dict__["seen"] = seen
        self.__dict__["prefix"] = prefix

    def __getattr__(self, key):
        self.__dict__["seen"].add(f"{self.__dict__['prefix']}.{key}")
        return dict.__getitem__(self, key)

    def __getitem__(self, key):
        self.__dict__["seen"].add(f"{self.__dict__['prefix']}.{key}")
        return dict.__getitem__(self, key)


def leaves(node, prefix):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}"


def test_every_key_is_read():
    cfg = tiny_config()
    seen = set()
    dict.__setitem__(cfg.MODEL, "SOLO", Recorder(cfg.MODEL.SOLO, seen, "SOLO"))
    build_model(cfg)
    assert set(leaves(cfg.MODEL.SOLO, "SOLO")) - seen == set()
