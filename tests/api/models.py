"""Tiny random models in files, with pictures for them, that find something in every image."""

from pathlib import Path

import torch

from tests.modeling.tiny import NUM_LABELS as NUM_LABELS
from tests.modeling.tiny import panoptic_config, save_checkpoint, tiny_config, tiny_model
from tests.pictures import bad_files as bad_files
from tests.pictures import picture as picture
from tests.pictures import save as save

ROOT = Path(__file__).resolve().parents[2]
SURE = """
MODEL.SOLO.NUM_CLASSES 7 MODEL.SOLO.KEEP_THRESH_TEST 0.0
MODEL.SOLO.NMS.TYPE hard TEST.DETECTIONS_PER_IMAGE 5 INPUT.MIN_SIZE_TEST 48
INPUT.MAX_SIZE_TEST 64 MODEL.SOLO.NUM_GRIDS [8,6,5,4,3] MODEL.SOLO.PRE_NMS_TOPK 20
DATASETS.TEST ('shapes_val',) DATASETS.TRAIN ()
""".split()


def make_cfg():
    cfg = tiny_config()
    cfg.merge_from_list(SURE)
    return cfg


def panoptic_cfg():
    cfg = panoptic_config()
    cfg.merge_from_list([*SURE, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 1])
    return cfg


def save_model(folder, *, panoptic=False):
    """Write model.pth and config.yaml; returns the checkpoint."""
    cfg = panoptic_cfg() if panoptic else make_cfg()
    built = tiny_model(cfg, sure=True)
    built.head.class_logits.weight.data *= 0.1  # for scores around 0.5
    if panoptic:
        torch.nn.init.normal_(built.semantic_branch.logits.weight)
        torch.nn.init.constant_(built.semantic_branch.logits.bias[2], 1.0)
    return save_checkpoint(folder, cfg, built)


def arguments(checkpoint):
    """Of the demo's command line, that name the model."""
    config = checkpoint.parent / "config.yaml"
    return ["--config-file", str(config), "--weights", str(checkpoint), "--device", "cpu"]


def run_demo(model, *args, threshold="0"):
    """Run the demo with these arguments; returns its exit code."""
    from demo import demo

    return demo.main([*model, "--confidence-threshold", threshold, *map(str, args)])
