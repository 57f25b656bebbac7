"""Every YAML loads and builds, every kind takes a step; every key is read and none is unknown."""

import io
import itertools
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import tools.ablations.dice_mask_head  # noqa: F401  (a head that configs/comparison has)
from solo_d2 import add_solo_config
from solo_d2.config.rules import leaves
from solo_d2.engine import Trainer
from solo_d2.inference import NMS
from solo_d2.losses import MASK_LOSSES
from tests.modeling.tiny import image, panoptic_config, with_sem_seg

pytestmark = pytest.mark.detectron2


CONFIGS = sorted(
    str(path)
    for path in Path("configs").rglob("*.yaml")
    # tests/ablations builds the ablations, and takes a step with each on a small backbone.
    if path.parent.name not in ("base", "ablations")
)


def load(file):
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.merge_from_file(file)  # refuses unknown keys
    cfg.MODEL.DEVICE = "cpu"
    for part in (cfg.MODEL.SOLO, cfg.MODEL.SEM_SEG_HEAD):
        part.NUM_CLASSES = part.NUM_CLASSES or 5
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    return narrow(cfg)


def narrow(cfg):
    """The config with fewer cells, layers and channels, so that a step takes no seconds."""
    model, solo = cfg.MODEL, cfg.MODEL.SOLO
    solo.NUM_GRIDS = [max(2, side // 4) for side in solo.NUM_GRIDS]
    for node, key in (
        *((solo.HEAD, "CONV_DIM"), (solo.MASK_FEATURE, "CONV_DIM")),
        *((solo.MASK_FEATURE, "OUT_CHANNELS"), (model.FPN, "OUT_CHANNELS")),
    ):
        node[key] = min(node[key], 64)
    for key in ("NUM_CONVS", "NUM_DEFORM_CONVS"):
        solo.HEAD[key] = min(solo.HEAD[key], 2)
    model.ROI_BOX_HEAD.FC_DIM = 64
    model.VIT.EMBED_DIM, model.SWIN.EMBED_DIM = model.VIT.EMBED_DIM // 8, model.SWIN.EMBED_DIM // 4
    if model.RESNETS.DEPTH > 34:  # the narrower ones have a width that Detectron2 fixes
        model.RESNETS.DEPTH, model.RESNETS.STEM_OUT_CHANNELS = 50, 8
        model.RESNETS.RES2_OUT_CHANNELS = 32
        model.RESNETS.WIDTH_PER_GROUP = max(1, model.RESNETS.WIDTH_PER_GROUP // 8)
    return cfg


def structure(cfg):
    """The model without what configs/published changes; test_published.py trains that."""
    model = cfg.MODEL.clone()
    model.WEIGHTS, model.PIXEL_MEAN, model.PIXEL_STD = "", [], []
    model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1 = "", True
    return model


def kind(cfg):
    """Return what decides which code a step runs: names and switches, but no numbers."""
    words = {}
    for key, value in leaves(structure(cfg)):
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(first, (str, bool)):
            words[key] = value
    resnets = cfg.MODEL.RESNETS
    return f"{words} {resnets.DEPTH > 34} {resnets.NUM_GROUPS > 1} {cfg.SOLVER.OPTIMIZER}"


@pytest.fixture(scope="module")
def done():
    """Structures that were built and kinds that took a step: many differ in numbers alone."""
    return set()


@pytest.mark.parametrize("file", CONFIGS)
def test_builds_and_steps(file, done):
    cfg = load(file)
    text = structure(cfg).dump()
    new_kind = kind(cfg) not in done
    if text in done and not new_kind:
        return
    done |= {text, kind(cfg)}
    if any(word in cfg.MODEL.BACKBONE.NAME for word in ("swin", "vit", "timm")):
        pytest.importorskip("timm")
    model = build_model(cfg).train()
    if new_kind:
        assert_steps(cfg, model)


def assert_steps(cfg, model):
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model([with_sem_seg(image(64, 64)), with_sem_seg(image(64, 64, num=0))])
    sum(losses.values()).backward()
    optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad():
        result = model.eval()([image(64, 64)])[0]["instances"]
    assert result.pred_masks.shape[1:] == (64, 64)
    assert_survives_a_checkpoint(model)


def assert_survives_a_checkpoint(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


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

    def __deepcopy__(self, memo):
        return self  # what is read from a copy counts too

    def __getattr__(self, key):
        self.__dict__["seen"].add(f"{self.__dict__['prefix']}.{key}")
        return dict.__getitem__(self, key)

    def __getitem__(self, key):
        self.__dict__["seen"].add(f"{self.__dict__['prefix']}.{key}")
        return dict.__getitem__(self, key)


def unread(cfg, parts, use):
    """Keys of some parts of MODEL that `use(cfg)` does not read."""
    seen, expected = set(), set()
    for part in parts:
        expected |= {f"{part}.{key}" for key, _ in leaves(cfg.MODEL[part])}
        dict.__setitem__(cfg.MODEL, part, Recorder(cfg.MODEL[part], seen, part))
    use(cfg)
    return expected - seen


# Keys of Detectron2's panoptic model that mean nothing to ours; config.py says so.
OF_OTHER_MODELS = {
    "SEM_SEG_HEAD.NAME",
    "SEM_SEG_HEAD.COMMON_STRIDE",
    "PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
    "PANOPTIC_FPN.COMBINE.ENABLED",
}


def test_every_key_is_read():
    def build_all(cfg):
        for nms, mask_loss in itertools.zip_longest(NMS, MASK_LOSSES, fillvalue="dice"):
            cfg.MODEL.SOLO.NMS.TYPE, cfg.MODEL.SOLO.LOSS.MASK_TYPE = nms, mask_loss
            build_model(cfg)

    parts = ("SOLO", "SEM_SEG_HEAD", "PANOPTIC_FPN")
    assert unread(panoptic_config(), parts, build_all) == OF_OTHER_MODELS
