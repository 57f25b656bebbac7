"""The meta-architecture of all SOLO models."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from solo_d2.inference import NMS, MaskDecoder, build_nms
from solo_d2.losses import MASK_LOSSES, build_mask_loss, solo_losses
from solo_d2.modeling.backbones.timm import pixel_statistics
from solo_d2.modeling.building import build_backbone_and_head, read_params
from solo_d2.modeling.heads import SOLOHeadBase
from solo_d2.modeling.visualize import draw_training_image
from solo_d2.structures import (
    BatchTotals,
    GridTargets,
    MicroBatch,
    NetworkOutputs,
    Predictions,
    cell_levels,
)
from solo_d2.targets import assign_grid_targets

# Keys of MODEL.SOLO.LOSS for parameters of mask losses with other names.
LOSS_KEYS = {"pos_weight": "MASK_POS_WEIGHT", "alpha": "FOCAL_ALPHA", "gamma": "FOCAL_GAMMA"}


@META_ARCH_REGISTRY.register()
class SOLO(nn.Module):
    """SOLO, Decoupled SOLO or SOLOv2, depending on the head."""

    # Whether the model predicts stuff too; see `solo_d2.config.models`.
    predicts_stuff: ClassVar[bool] = False
    # Buffers, all on the model's device.
    pixel_mean: Tensor
    pixel_std: Tensor
    cell_levels: Tensor
    strides: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: SOLOHeadBase,
        num_classes: int,
        scale_ranges: Sequence[Sequence[float]],
        center_scale: float,
        cell_conflict: str,
        mask_target: str,
        loss_params: dict[str, Any],
        decoder_params: dict[str, Any],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
        vis_period: int = 0,
    ):
        """Create the model.

        Args:
            backbone: computes the features for the head.
            head: predicts classes and masks.
            num_classes: K.
            scale_ranges: see `assign_grid_targets`.
            center_scale: see `assign_grid_targets`.
            cell_conflict: see `assign_grid_targets`.
            mask_target: target of the mask branch, see `assign_grid_targets`.
            loss_params: mask loss, weights and focal parameters, see `solo_losses`.
            decoder_params: NMS, thresholds and limits, see `MaskDecoder`.
            pixel_mean: mean of each channel, in the order of `input_format`.
            pixel_std: standard deviation of each channel.
            input_format: channel order of the images, for visualization.
            vis_period: iterations between visualizations of training; 0 for none.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.scale_ranges = scale_ranges
        self.center_scale = center_scale
        self.cell_conflict = cell_conflict
        self.mask_target = mask_target
        self.loss_params = loss_params
        self.decoder_params = decoder_params
        self.input_format = input_format
        self.vis_period = vis_period
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        self.register_buffer("cell_levels", cell_levels(head.num_grids), persistent=False)
        self.register_buffer("strides", torch.tensor(head.strides).float(), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translate the config to arguments."""
        backbone, head = build_backbone_and_head(cfg)
        solo = cfg.MODEL.SOLO
        pixel_mean, pixel_std = pixel_statistics(cfg)
        nms_params = read_params(
            NMS[solo.NMS.TYPE], ("masks", "labels", "scores"), "MODEL.SOLO.NMS", solo.NMS
        )
        mask_loss = MASK_LOSSES[solo.LOSS.MASK_TYPE]
        mask_loss_params = read_params(
            mask_loss, ("mask_probs", "masks"), "MODEL.SOLO.LOSS", solo.LOSS, LOSS_KEYS
        )
        return {
            "backbone": backbone,
            "head": head,
            "num_classes": solo.NUM_CLASSES,
            "scale_ranges": solo.SCALE_RANGES,
            "center_scale": solo.CENTER_SCALE,
            "cell_conflict": solo.CELL_CONFLICT,
            "mask_target": solo.MASK_TARGET,
            "loss_params": {
                "mask_loss": build_mask_loss(solo.LOSS.MASK_TYPE, mask_loss_params),
                "cls_weight": solo.LOSS.CLS_WEIGHT,
                "mask_weight": solo.LOSS.MASK_WEIGHT,
                "focal_alpha": solo.LOSS.FOCAL_ALPHA,
                "focal_gamma": solo.LOSS.FOCAL_GAMMA,
                "memory_mib": solo.LOSS.MEMORY_MIB or None,
            },
            "decoder_params": {
                "nms": build_nms(solo.NMS.TYPE, nms_params),
                "contours": solo.MASK_TARGET == "contour",
                "backend": solo.MASK_BACKEND,
                "score_thresh": solo.SCORE_THRESH_TEST,
                "mask_thresh": solo.MASK_THRESH_TEST,
                "pre_nms_topk": solo.PRE_NMS_TOPK,
                "keep_thresh": solo.KEEP_THRESH_TEST,
                "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
                "lanes": solo.LANES,
            },
            "pixel_mean": pixel_mean,
            "pixel_std": pixel_std,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        """The device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        micro_batch: MicroBatch | None = None,
        *,
        score_thresh: float | None = None,
    ) -> Any:
        """Compute losses or predictions for Detectron2's standard inputs.

        Args:
            batched_inputs: for each image "image", (C, H, W) in `input_format`; for training,
                "instances" with gt_boxes, gt_classes and gt_masks (BitMasks or PolygonMasks); for
                inference, optionally "height" and "width" of the output.
            micro_batch: for gradient accumulation, the plan of `plan_micro_batches` for these
                inputs.
            score_thresh: for inference, minimum score of an instance, if above the model's.

        Returns:
            In training, a dict of scalar losses; else for each image {"instances": Instances} with
            pred_masks (M, height, width) bool, pred_boxes, scores and pred_classes, best first.
        """
        if not self.training:
            images = self.preprocess_image(batched_inputs)
            outputs = self.network(images.tensor)
            return self.postprocess(batched_inputs, images, outputs, score_thresh)
        # Before the network runs: the synchronization is short then, and the masks at full size are
        # freed before activations are allocated.
        micro_batch = micro_batch or self.plan_micro_batches([batched_inputs])[0]
        images = self.preprocess_image(batched_inputs, micro_batch.padded_size)
        return self._losses(batched_inputs, images, self.network(images.tensor), micro_batch)

    def network(self, images: Tensor) -> NetworkOutputs:
        """Run backbone and head, whose computation does not depend on the image content.

        Args:
            images: (B, 3, H, W) float, normalized and padded.
        """
        return NetworkOutputs(self.head(self.backbone(images)))

    def preprocess_image(
        self, batched_inputs: list[dict[str, Any]], padded_size: tuple[int, int] | None = None
    ) -> ImageList:
        """Normalize images and pad them to a common size, or to a given larger one."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return self._pad(images, padded_size)

    def _pad(
        self, images: list[Tensor], padded_size: tuple[int, int] | None = None, value: float = 0.0
    ) -> ImageList:
        """Pad images (..., H, W) to a common size that the backbone supports."""
        backbone = self.backbone
        padded = ImageList.from_tensors(
            images, backbone.size_divisibility, value, backbone.padding_constraints
        )
        if padded_size is None:
            return padded
        height, width = padded.tensor.shape[-2:]
        missing = (0, padded_size[1] - width, 0, padded_size[0] - height)
        return ImageList(F.pad(padded.tensor, missing, value=value), padded.image_sizes)

    @torch.no_grad()
    def plan_micro_batches(self, micro_batches: Sequence[list[dict[str, Any]]]) -> list[MicroBatch]:
        """Assign the targets of a batch, whose losses are sums over its micro-batches.

        Args:
            micro_batches: training inputs of each micro-batch.

        Returns:
            The argument `micro_batch` of `forward` for each micro-batch.
        """
        sizes = [x["image"].shape[-2:] for inputs in micro_batches for x in inputs]
        largest = [max(lengths) for lengths in zip(*sizes, strict=True)]
        padded = self._pad([torch.empty(1, *largest, device="meta")])  # a size without memory
        targets = [
            self.assign_targets([x["instances"] for x in inputs], padded)
            for inputs in micro_batches
        ]
        totals = BatchTotals.of(targets)
        padded_size = (padded.tensor.shape[-2], padded.tensor.shape[-1])
        return [MicroBatch(i, padded_size, own, totals) for i, own in enumerate(targets)]

    def _losses(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        outputs: NetworkOutputs,
        micro_batch: MicroBatch,
    ) -> dict[str, Tensor]:
        totals = micro_batch.totals
        losses = solo_losses(
            outputs.head, micro_batch.targets, head=self.head, totals=totals, **self.loss_params
        )
        if micro_batch.index > 0:
            return losses  # the following is logged once per batch
        storage = get_event_storage()
        storage.put_scalar("targets/num_positive_cells", totals.num_positive_cells)
        storage.put_scalar("targets/num_mask_samples", totals.num_mask_samples)
        storage.put_scalar("targets/num_cell_conflicts", totals.num_conflicts)
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            sizes = images.image_sizes
            prediction = self.decoder.decode(outputs.head, sizes, sizes)[0]
            picture = draw_training_image(batched_inputs[0], prediction, self.input_format)
            storage.put_image("Left: ground truth; right: predictions", picture)
        return losses

    def assign_targets(self, gt_instances: list[Instances], images: ImageList) -> GridTargets:
        """Assign the instances of a batch to cells, on the model's device."""
        gt = [self.gt_tensors(instances) for instances in gt_instances]
        boxes, classes, masks = zip(*gt, strict=True)
        return assign_grid_targets(
            boxes,
            classes,
            masks,
            padded_size=tuple(images.tensor.shape[-2:]),
            num_grids=self.head.num_grids,
            scale_ranges=self.scale_ranges,
            mask_strides=self.head.mask_strides,
            num_classes=self.num_classes,
            center_scale=self.center_scale,
            cell_conflict=self.cell_conflict,
            mask_target=self.mask_target,
        )

    def gt_tensors(self, instances: Instances) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, 4), classes (N,) and masks (N, H, W) bool of one image."""
        if not instances.has("gt_masks"):  # Detectron2's mapper, for no annotations
            masks = torch.zeros(0, *instances.image_size, dtype=torch.bool)
        elif isinstance(instances.gt_masks, PolygonMasks):
            polygons = instances.gt_masks.polygons
            masks = BitMasks.from_polygon_masks(polygons, *instances.image_size).tensor
        else:
            # Moved first: the masks of `SOLODatasetMapper` are cropped until they are read.
            masks = instances.gt_masks.to(self.device, non_blocking=True).tensor
        boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
        boxes, classes, masks = (
            x.to(self.device, non_blocking=True) for x in (boxes, classes, masks)
        )
        return boxes, classes, masks

    def postprocess(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        outputs: NetworkOutputs,
        score_thresh: float | None = None,
    ) -> list[dict[str, Any]]:
        """Compute the results of inference; see `forward`."""
        output_sizes = [
            (x.get("height", size[0]), x.get("width", size[1]))
            for x, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        # Applied in the decoder, so that masks below the threshold are not computed.
        least = max(self.decoder_params["keep_thresh"], score_thresh or 0.0)
        decoder = replace(self.decoder, keep_thresh=least)
        predictions = decoder.decode(outputs.head, images.image_sizes, output_sizes)
        return [
            {"instances": to_instances(prediction, size)}
            for prediction, size in zip(predictions, output_sizes, strict=True)
        ]

    @property
    def decoder(self) -> MaskDecoder:
        """The decoder from head outputs to instances."""
        return MaskDecoder(
            head=self.head,
            cell_levels=self.cell_levels,
            strides=self.strides,
            **self.decoder_params,
        )


def to_instances(prediction: Predictions, size: tuple[int, int]) -> Instances:
    """Convert the predictions of an image with output size (height, width) for Detectron2."""
    return Instances(
        size,
        pred_masks=prediction.masks,
        pred_boxes=Boxes(prediction.boxes),
        scores=prediction.scores,
        pred_classes=prediction.classes,
    )
