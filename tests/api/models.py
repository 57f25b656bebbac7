"""Tiny random models in files, with pictures for them, that find something in every image."""

from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from solo_d2 import add_solo_config
from tests.pictures import bad_files as bad_files
from tests.pictures import picture as picture
from tests.pictures import save as save

ROOT = Path(__file__).resolve().parents[2]
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 8
MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 32
MODEL.SOLO.NUM_CLASSES 7 MODEL.SOLO.HEAD.NUM_CONVS 1 MODEL.SOLO.HEAD.CONV_DIM 32
MODEL.SOLO.HEAD.PRIOR_PROB 0.7 MODEL.SOLO.MASK_FEATURE.CONV_DIM 32
MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS 32 MODEL.SOLO.KEEP_THRESH_TEST 0.0
MODEL.SOLO.NMS.TYPE hard TEST.DETECTIONS_PER_IMAGE 5 INPUT.MIN_SIZE_TEST 48
INPUT.MAX_SIZE_TEST 64 MODEL.SOLO.NUM_GRIDS [8,6,5,4,3] MODEL.SOLO.PRE_NMS_TOPK 20
""".split()


NUM_LABELS = 4  # of the panoptic one


def make_cfg():
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/base/solov2_fpn.yaml"))
    cfg.merge_from_list([*TINY, "DATASETS.TEST", "('shapes_val',)", "DATASETS.TRAIN", "()"])
    return cfg


def panoptic_cfg():
    cfg = make_cfg()
    cfg.merge_from_file(str(ROOT / "configs/base/panoptic_fpn.yaml"))
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_LABELS
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    return cfg


def save_model(folder, *, panoptic=False):
    """Write model.pth and config.yaml; returns the checkpoint."""
    cfg = panoptic_cfg() if panoptic else make_cfg()
    torch.manual_seed(0)
    built = build_model(cfg)
    if panoptic:
        torch.nn.init.normal_(built.semantic_branch.logits.weight)
        torch.nn.init.constant_(built.semantic_branch.logits.bias[2], 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": built.state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


def arguments(checkpoint):
    """Of the demo's command line, that name the model."""
    return [
        "--config-file",
        str(checkpoint.parent / "config.yaml"),
        "--weights",
        str(checkpoint),
        "--device",
        "cpu",
    ]


def run_demo(model, *args, threshold="0"):
    """Run the demo with these arguments; returns its exit code."""
    from demo import demo

    return demo.main([*model, "--confidence-threshold", threshold, *map(str, args)])
