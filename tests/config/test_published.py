"""The authors' recipe in configs/published."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone

import solo_d2.modeling  # noqa: F401  (registers the backbone)
from solo_d2.config import load_config

PUBLISHED = sorted(Path("configs/published").glob("*.yaml"), key=lambda path: path.stem)
# Images of COCO train2017 with objects, 16 at a time.
ITERATIONS_PER_EPOCH = 117266 / 16
EPOCHS = {"1x": (9, 11, 12), "3x": (27, 33, 36), "6x": (54, 66, 72)}


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: path.stem)
def test_follows_the_recipe(file):
    cfg = load_config(str(file))
    solver, resnets = cfg.SOLVER, cfg.MODEL.RESNETS
    expected = [round(ITERATIONS_PER_EPOCH * n) for n in EPOCHS[file.stem.split("_")[-1]]]
    assert [*solver.STEPS, solver.MAX_ITER] == expected
    assert (solver.BASE_LR, solver.GAMMA, solver.IMS_PER_BATCH) == (0.01, 0.1, 16)
    factor = 0.01 if "solov2" in file.stem else 1 / 3
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (500, pytest.approx(factor))
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-4, 1e-4)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 35)
    assert (resnets.NORM, resnets.STRIDE_IN_1X1, cfg.INPUT.FORMAT) == ("EvalBN", False, "RGB")
    depth = next(int(part[1:]) for part in file.stem.split("_") if part[:1] in "RX")
    assert resnets.DEPTH == depth
    name = {50: "R-50.pkl"}.get(depth, f"resne{'x' if 'X101' in file.stem else ''}t{depth}")
    assert name.replace("resnext101", "resnext101_64x4d") in cfg.MODEL.WEIGHTS
    coco = load_config(str(Path("configs/coco") / file.name))
    for key in ("DEFORM_ON_PER_STAGE", "DEFORM_MODULATED", "NUM_GROUPS"):
        assert resnets[key] == coco.MODEL.RESNETS[key]
    assert cfg.MODEL.SOLO == coco.MODEL.SOLO


def test_dcn_101_of_solo_is_the_backbone_alone():
    for name in ("solo_R101_dcn_6x", "decoupled_solo_R101_dcn_6x"):
        cfg = load_config(f"configs/coco/{name}.yaml")
        assert cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE == [False, True, True, True]
        assert cfg.MODEL.SOLO.HEAD.DEFORM == ""


def test_norms_stay_in_eval_mode():
    cfg = load_config("configs/published/solov2_R101_dcn_3x.yaml")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 16
    resnet = build_backbone(cfg).train().bottom_up
    norm = resnet.res3[0].conv1.norm
    before = norm.running_mean.clone()
    resnet(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert torch.equal(norm.running_mean, before)  # statistics of pretraining
    assert not norm.training
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert all(not parameter.requires_grad for parameter in resnet.res2.parameters())
