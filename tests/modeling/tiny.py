"""Tiny random models and inputs."""

import copy
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from solo_d2 import add_solo_config

BASES = Path(__file__).resolve().parents[2] / "configs/base"
NUM_CLASSES = 5
NUM_LABELS = 4  # of the semantic branch
IGNORED = 255

# Models by what decides about them, with the random state after building; the oldest leaves first.
_built = {}
MAX_BUILT = 6


def tiny_config(head: str = "SOLOv2Head") -> CfgNode:
    """A model of 32 channels that accepts 96x128 images."""
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.merge_from_file(str(BASES / "solov2_fpn.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    solo = cfg.MODEL.SOLO
    solo.NUM_CLASSES = NUM_CLASSES
    solo.NUM_GRIDS = [10, 8, 6, 5, 4]
    solo.SCALE_RANGES = [[1, 24], [12, 48], [24, 96], [48, 160], [96, 512]]
    solo.HEAD.NAME = head
    solo.HEAD.NUM_CONVS = 1
    solo.HEAD.CONV_DIM = 32
    solo.MASK_FEATURE.CONV_DIM = 32
    solo.MASK_FEATURE.OUT_CHANNELS = 32
    return cfg


def panoptic_config(head: str = "SOLOv2Head") -> CfgNode:
    """The same with a semantic branch."""
    cfg = tiny_config(head)
    cfg.merge_from_file(str(BASES / "panoptic_fpn.yaml"))
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_LABELS
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    return cfg


def tiny_model(cfg: CfgNode | None = None, *, sure: bool = False):
    """Build; `sure` makes every cell a candidate, with masks of some variety.

    A model is built once for tests that follow each other, since drawing the weights takes ten
    times as long as copying them.
    """
    cfg = cfg or tiny_config()
    if type(cfg) is not CfgNode:  # it records what is read
        return _build(cfg, sure)
    key = repr(cfg), sure
    if key not in _built:
        if len(_built) == MAX_BUILT:
            _built.pop(next(iter(_built)))
        _built[key] = _build(cfg, sure), torch.get_rng_state()
    model, random_state = _built[key]
    torch.set_rng_state(random_state)
    return copy.deepcopy(model)


def _build(cfg, sure):
    torch.manual_seed(0)
    model = build_model(cfg)
    if sure:
        for module in model.head.modules():
            if isinstance(module, Conv2d) and module.norm is None:  # a predictor
                torch.nn.init.normal_(module.weight, std=0.2)
                torch.nn.init.zeros_(module.bias)
    return model


def save_checkpoint(folder, cfg, model, **content):
    """Write model.pth, with other content, and config.yaml; returns the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), **content}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


def image(height: int = 96, width: int = 128, *, num: int = 3, seed: int = 0, **extra):
    """A training input with `num` rectangles."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(num, height, width, dtype=torch.bool)
    for mask in masks:
        y, x, h, w = (torch.rand(4, generator=generator) * torch.tensor([50, 60, 40, 60])).int()
        mask[y : y + h + 4, x : x + w + 4] = True
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes() if num else Boxes([])
    instances.gt_classes = torch.randint(NUM_CLASSES, (num,), generator=generator)
    pixels = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "instances": instances, **extra}


def losses_of(model, batch):
    """The losses of a training step, and what was logged."""
    with EventStorage() as storage:
        losses = model.train()(batch)
    return losses, storage


def assert_all_learn(model, losses):
    """Every parameter that is not frozen gets a finite gradient."""
    sum(losses.values()).backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in learning.values())


def with_sem_seg(sample, *, labels: int = NUM_LABELS, seed: int = 0):
    """The training input with labels: things at its instances, bands of stuff, ignored pixels."""
    height, width = sample["image"].shape[1:]
    generator = torch.Generator().manual_seed(seed)
    sem_seg = torch.randint(1, labels, (height // 16 + 1, 1), generator=generator)
    sem_seg = sem_seg.repeat_interleave(16, dim=0)[:height].repeat(1, width)
    sem_seg[sample["instances"].gt_masks.tensor.any(dim=0)] = 0
    sem_seg[:3] = IGNORED
    return {**sample, "sem_seg": sem_seg}
