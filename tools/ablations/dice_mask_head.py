"""Mask R-CNN's mask head with the Dice loss of SOLO, to compare the methods with equal losses.

Train it with `train_net.py --import tools/ablations/dice_mask_head.py` and the config
configs/comparison/mask_rcnn_EfficientNetLite0_photos_dice.yaml.
"""

from typing import Any

import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor

from solo_d2.losses import dice_loss


@ROI_MASK_HEAD_REGISTRY.register()
class DiceMaskHead(MaskRCNNConvUpsampleHead):
    """MODEL.ROI_MASK_HEAD.NAME "DiceMaskHead": Dice loss, averaged over the positive proposals."""

    def forward(self, x: Tensor, instances: list[Any]) -> Any:
        """Return the loss in training, otherwise the instances with masks."""
        if not self.training:
            return super().forward(x, instances)
        logits = self.layers(x)
        found = [of_image for of_image in instances if len(of_image)]
        if not found:
            return {"loss_mask": logits.sum() * 0}
        masks = torch.cat(
            [
                of_image.gt_masks.crop_and_resize(
                    of_image.proposal_boxes.tensor, logits.shape[-1]
                ).to(logits.device)
                for of_image in found
            ]
        )
        if logits.shape[1] > 1:
            classes = torch.cat([of_image.gt_classes for of_image in found])
            logits = logits[torch.arange(len(logits), device=logits.device), classes]
        else:
            logits = logits[:, 0]
        return {"loss_mask": dice_loss(logits.sigmoid(), masks > 0).mean() * self.loss_weight}
