"""Detectron2's Mask R-CNN as the reference for our models: its config, its stages, and its size.

Letters: P proposals, M instances.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch import rcnn
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from torch import Tensor

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.reading import read_checkpoint
from solo_d2.config import load_config
from solo_d2.engine import Trainer
from solo_d2.utils.errors import ConfigError

# Name of a stage, and the object and its attribute that is called for it. Some call others; the
# inner one counts.
Stage = tuple[str, Any, str]
ZOO_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


class _AsNamed(SOLOCheckpointer):
    """Takes names as they are, where a SOLO would see the weights of a backbone."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        return {**read_checkpoint(filename), "source": None}


def load(args: argparse.Namespace, cfg: CfgNode) -> tuple[CfgNode, Any]:
    """The config and the Mask R-CNN, with as many classes as in `cfg` where it is random.

    Raises:
        ConfigError: it is not one, cannot be loaded, or cannot be compared with the model.
    """
    file = args.reference_config or str(model_zoo.get_config_file(ZOO_CONFIG))
    reference = load_config(file)
    model, solo = reference.MODEL, cfg.MODEL.SOLO
    if model.META_ARCHITECTURE != "GeneralizedRCNN" or not model.MASK_ON:
        raise ConfigError(
            f"{file} is no config of a Mask R-CNN: MODEL.META_ARCHITECTURE must be "
            f"'GeneralizedRCNN', not {model.META_ARCHITECTURE!r}, and MODEL.MASK_ON True"
        )
    reference.TEST.DETECTIONS_PER_IMAGE = cfg.TEST.DETECTIONS_PER_IMAGE
    model.DEVICE = str(args.device)
    if not args.reference_weights:
        model.ROI_HEADS.NUM_CLASSES = solo.NUM_CLASSES
    if args.dataset and model.ROI_HEADS.NUM_CLASSES != solo.NUM_CLASSES:
        raise ConfigError(
            f"{file} has {model.ROI_HEADS.NUM_CLASSES} classes, {args.config_file} "
            f"{solo.NUM_CLASSES}: they cannot be compared on a data set. Leave out --dataset or "
            "--reference-weights, or name a fitting --reference-config"
        )
    torch.manual_seed(args.seed)
    built = Trainer.build_model(reference).eval()
    if args.reference_weights:
        # Constants, which older versions saved.
        constants = ("proposal_generator.anchor_generator.*", "pixel_mean", "pixel_std")
        _AsNamed(built, whole=True, allow=constants).load(args.reference_weights)
    return reference, built


def stage_functions(model: Any) -> list[Stage]:
    """Where inference of a Mask R-CNN spends its time; "NMS" is that of proposals and of boxes."""
    roi_heads = model.roi_heads
    return [
        ("normalise, pad", model, "preprocess_image"),
        ("backbone", model.backbone, "forward"),
        ("head", model.proposal_generator, "forward"),
        ("head", roi_heads, "forward"),
        ("NMS", proposal_utils, "batched_nms"),
        ("NMS", fast_rcnn, "batched_nms"),
        ("masks", roi_heads.mask_pooler, "forward"),
        ("masks", roi_heads.mask_head, "forward"),
        ("resize of masks", rcnn, "detector_postprocess"),
    ]


def parts_of_network(
    model: Any, num_proposals: int, num_instances: int
) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
    """What is computed of an image whatever is in it, and the most that its objects take.

    Both are functions of images (B, 3, H, W), normalised and padded: backbone and the convolutions
    of the proposals; and the heads on P regions for boxes and M for masks.
    """
    proposals, roi_heads = model.proposal_generator, model.roi_heads

    def of_image(images: Tensor) -> Any:
        features = model.backbone(images)
        return proposals.rpn_head([features[name] for name in proposals.in_features])

    def of_objects(images: Tensor) -> Any:
        channels = model.backbone.output_shape()[roi_heads.box_in_features[0]].channels
        sizes = (roi_heads.box_pooler.output_size, roi_heads.mask_pooler.output_size)
        boxes, masks = (
            torch.empty(number, channels, *size, device=images.device)
            for number, size in zip((num_proposals, num_instances), sizes, strict=True)
        )
        return roi_heads.box_predictor(roi_heads.box_head(boxes)), roi_heads.mask_head.layers(masks)

    return of_image, of_objects
