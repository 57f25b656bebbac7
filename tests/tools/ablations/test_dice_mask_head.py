"""Mask R-CNN with the Dice loss."""

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import tools.ablations.dice_mask_head  # noqa: F401  (registers the head)
from solo_d2.config import load_config
from tests.modeling.tiny import image


def test_trains_with_and_without_objects():
    cfg = load_config("configs/comparison/mask_rcnn_EfficientNetLite0_photos_dice.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg).train()
    head = model.roi_heads.mask_head
    for num in (2, 0):
        batch = [image(64, 64, num=num)]
        batch[0]["instances"].gt_classes.zero_()
        model.zero_grad()
        with EventStorage():
            loss = model(batch)["loss_mask"]
        loss.backward()
        assert 0 <= loss.item() <= 1
        assert (loss.item() > 0) == (num > 0)
        assert all(parameter.grad is not None for parameter in head.parameters())
    with torch.no_grad():
        assert "instances" in model.eval()([image(64, 64)])[0]
