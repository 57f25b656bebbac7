"""The panoptic model: SOLO with a semantic branch (SOLOv2, arXiv:2003.10152, section 3.2)."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from solo_d2.errors import DatasetError
from solo_d2.losses import semantic_loss
from solo_d2.modeling.checks import check_panoptic_config
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.modeling.semantic import SemanticBranch, SharedSemanticBranch, build_semantic_branch
from solo_d2.ops.panoptic_merge import merge_panoptic
from solo_d2.ops.panoptic_scores import resize_scores


@META_ARCH_REGISTRY.register()
class PanopticSOLO(SOLO):
    """SOLO, Decoupled SOLO or SOLOv2 with a semantic branch beside the head."""

    @configurable
    def __init__(
        self,
        *,
        semantic_branch: SemanticBranch | SharedSemanticBranch,
        semantic_loss_weight: float,
        ignore_value: int,
        merge_params: dict[str, Any],
        **solo: Any,
    ):
        """Make the model.

        Args:
            semantic_branch: called with the backbone's features and the head's outputs.
            semantic_loss_weight: of `loss_sem_seg`.
            ignore_value: label of the pixels that do not count in training.
            merge_params: number of labels, thresholds and limits, see `merge_panoptic`.
            **solo: see `SOLO`.
        """
        super().__init__(**solo)
        self.semantic_branch = semantic_branch
        self.semantic_loss_weight = semantic_loss_weight
        self.ignore_value = ignore_value
        self.merge_params = merge_params

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translate the config to arguments."""
        arguments = super().from_config(cfg)
        input_shape = arguments["backbone"].output_shape()
        check_panoptic_config(cfg, input_shape)
        semantic, combine = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PANOPTIC_FPN.COMBINE
        return {
            **arguments,
            "semantic_branch": build_semantic_branch(cfg, input_shape, arguments["head"]),
            "semantic_loss_weight": semantic.LOSS_WEIGHT,
            "ignore_value": semantic.IGNORE_VALUE,
            "merge_params": {
                "num_labels": semantic.NUM_CLASSES,
                "overlap_thresh": combine.OVERLAP_THRESH,
                "stuff_area_limit": combine.STUFF_AREA_LIMIT,
                "score_thresh": combine.INSTANCES_CONFIDENCE_THRESH,
            },
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Train or infer, on Detectron2's standard inputs.

        Args:
            batched_inputs: as of `SOLO`; for training also "sem_seg", (H, W) int64, 0 for all
                things, 1, 2, ... for stuff, or the ignored value.

        Returns:
            In training a dict of scalar losses, with `loss_sem_seg`; else for each image what
            Detectron2's PanopticFPN gives: "instances" as of `SOLO`, "sem_seg" (C, height, width)
            float32 logits, and "panoptic_seg" as of `merge_panoptic`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        outputs = self.head(features)
        logits = self.semantic_branch(features, outputs)
        if self.training:
            losses = self._losses(batched_inputs, images, outputs)
            return losses | {"loss_sem_seg": self._semantic_loss(batched_inputs, logits)}
        results = self._inference(batched_inputs, images, outputs)
        return [
            self._combine(result["instances"], image_logits, image_size)
            for result, image_logits, image_size in zip(
                results, logits, images.image_sizes, strict=True
            )
        ]

    def _semantic_loss(self, batched_inputs: list[dict[str, Any]], logits: Tensor) -> Tensor:
        """The weighted loss, at the size of the padded input; padding is ignored."""
        if not all("sem_seg" in x for x in batched_inputs):
            raise DatasetError(
                "PanopticSOLO trains on semantic labels too, but an image comes without 'sem_seg': "
                "name in DATASETS.TRAIN a data set that has sem_seg_file_name, such as "
                "coco_2017_train_panoptic_separated"
            )
        labels = ImageList.from_tensors(
            [x["sem_seg"].to(self.device, non_blocking=True) for x in batched_inputs],
            self.backbone.size_divisibility,
            self.ignore_value,
            self.backbone.padding_constraints,
        ).tensor
        logits = F.interpolate(
            logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        loss = semantic_loss(logits, labels, ignore_value=self.ignore_value)
        return self.semantic_loss_weight * loss

    def _combine(
        self, instances: Instances, logits: Tensor, image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The results of one image, at the output size.

        Args:
            instances: at the output size.
            logits: (C, H, W) over the padded input.
            image_size: height and width of the image in it.
        """
        scores = resize_scores(
            logits,
            stride=self.semantic_branch.stride,
            image_size=image_size,
            output_size=instances.image_size,
        )
        panoptic = merge_panoptic(
            instances.pred_masks,
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            scores.argmax(dim=0),
            **self.merge_params,
        )
        return {"instances": instances, "sem_seg": scores, "panoptic_seg": panoptic}
