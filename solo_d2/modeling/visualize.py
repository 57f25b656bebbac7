"""Visualization of training for TensorBoard."""

from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb

from solo_d2.structures import Predictions

MAX_INSTANCES = 20


def draw_training_image(
    inputs: dict[str, Any], prediction: Predictions, input_format: str
) -> np.ndarray:
    """Draw ground truth and predictions of a training image side by side.

    Args:
        inputs: one element of a training batch.
        prediction: predictions at the image size; the best `MAX_INSTANCES` are drawn.
        input_format: channel order of the image.

    Returns:
        (3, H, 2W) uint8, RGB.
    """
    from detectron2.utils.visualizer import Visualizer  # imports matplotlib

    image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), input_format)
    image = np.clip(image, 0, 255).astype(np.uint8)
    gt = inputs["instances"]
    left = Visualizer(image).overlay_instances(
        masks=gt.gt_masks if gt.has("gt_masks") and len(gt) else None,
        labels=[str(c) for c in gt.gt_classes.tolist()],
    )
    scores, classes = (x[:MAX_INSTANCES].tolist() for x in (prediction.scores, prediction.classes))
    right = Visualizer(image).overlay_instances(
        masks=prediction.masks[:MAX_INSTANCES].cpu().numpy() if scores else None,
        labels=[f"{c} {s:.2f}" for c, s in zip(classes, scores, strict=True)],
    )
    pictures = [left.get_image(), right.get_image()]
    return np.concatenate(pictures, axis=1).transpose(2, 0, 1)
