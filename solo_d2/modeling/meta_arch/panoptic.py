"""The panoptic model: SOLO with a semantic branch (SOLOv2, arXiv:2003.10152, section 3.2)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from solo_d2.losses import semantic_loss
from solo_d2.modeling.building import refusing
from solo_d2.modeling.checks import check_panoptic_config
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.modeling.semantic import SemanticBranch, build_semantic_branch
from solo_d2.ops.panoptic_merge import merge_panoptic, resize_scores
from solo_d2.structures import MicroBatch, NetworkOutputs
from solo_d2.utils.errors import DatasetError

# Limit of semantic scores, far below the maximum of float16.
LARGEST_LOGIT = 1e4


@META_ARCH_REGISTRY.register()
class PanopticSOLO(SOLO):
    """SOLO, Decoupled SOLO or SOLOv2 with a semantic branch.

    `forward` is that of `SOLO`. Training inputs also have "sem_seg", (H, W) int64, with 0 for all
    things, 1, 2, ... for stuff, or the ignored value; losses also have `loss_sem_seg`. Results are
    those of Detectron2's PanopticFPN: they also have "sem_seg", (C, height, width) float32 logits,
    and "panoptic_seg", see `merge_panoptic`. If given, `score_thresh` also applies to instances in
    the panoptic segmentation.
    """

    predicts_stuff: ClassVar[bool] = True

    @configurable
    def __init__(
        self,
        *,
        semantic_branch: SemanticBranch,
        semantic_loss_weight: float,
        ignore_value: int,
        merge_params: dict[str, Any],
        **solo: Any,
    ):
        """Create the model.

        Args:
            semantic_branch: called with the backbone's features and the head's outputs.
            semantic_loss_weight: weight of `loss_sem_seg`.
            ignore_value: label of pixels to ignore in training.
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
        with refusing("The semantic branch that MODEL.SEM_SEG_HEAD describes"):
            branch = build_semantic_branch(cfg, input_shape, arguments["head"])
        semantic, combine = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PANOPTIC_FPN.COMBINE
        return {
            **arguments,
            "semantic_branch": branch,
            "semantic_loss_weight": semantic.LOSS_WEIGHT,
            "ignore_value": semantic.IGNORE_VALUE,
            "merge_params": {
                "num_labels": semantic.NUM_CLASSES,
                "overlap_thresh": combine.OVERLAP_THRESH,
                "stuff_area_limit": combine.STUFF_AREA_LIMIT,
                "score_thresh": combine.INSTANCES_CONFIDENCE_THRESH,
            },
        }

    def network(self, images: Tensor) -> NetworkOutputs:
        """Run backbone, head and semantic branch; see `SOLO.network`."""
        features = self.backbone(images)
        outputs = self.head(features)
        return NetworkOutputs(outputs, self.semantic_branch(features, outputs))

    def _losses(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        outputs: NetworkOutputs,
        micro_batch: MicroBatch,
    ) -> dict[str, Tensor]:
        logits = cast(Tensor, outputs.semantic_logits)
        loss = self.semantic_loss(batched_inputs, logits, micro_batch)
        losses = super()._losses(batched_inputs, images, outputs, micro_batch)
        return losses | {"loss_sem_seg": loss}

    def postprocess(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        outputs: NetworkOutputs,
        score_thresh: float | None = None,
    ) -> list[dict[str, Any]]:
        """Compute the results of inference; see `forward`."""
        results = super().postprocess(batched_inputs, images, outputs, score_thresh)
        logits = cast(Tensor, outputs.semantic_logits)
        return [
            self.combine(result["instances"], of_image, size, score_thresh)
            for result, of_image, size in zip(results, logits, images.image_sizes, strict=True)
        ]

    def plan_micro_batches(self, micro_batches: Sequence[list[dict[str, Any]]]) -> list[MicroBatch]:
        """Extend the plans of `SOLO` by the number of labeled pixels."""
        labels = [x for inputs in micro_batches for x in semantic_labels(inputs)]
        num_labelled = sum(int((x != self.ignore_value).sum()) for x in labels)
        return [
            replace(plan, totals=replace(plan.totals, num_labelled=num_labelled))
            for plan in super().plan_micro_batches(micro_batches)
        ]

    def semantic_loss(
        self,
        batched_inputs: list[dict[str, Any]],
        logits: Tensor,
        micro_batch: MicroBatch | None = None,
    ) -> Tensor:
        """Compute the weighted loss at the size of the padded input, ignoring padding."""
        labels = self._pad(
            [x.to(self.device, non_blocking=True) for x in semantic_labels(batched_inputs)],
            micro_batch.padded_size if micro_batch else None,
            self.ignore_value,
        ).tensor
        logits = F.interpolate(
            logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        loss = semantic_loss(
            logits,
            labels,
            ignore_value=self.ignore_value,
            num_labelled=micro_batch.totals.num_labelled if micro_batch else None,
        )
        return self.semantic_loss_weight * loss

    def combine(
        self,
        instances: Instances,
        logits: Tensor,
        image_size: tuple[int, int],
        score_thresh: float | None = None,
    ) -> dict[str, Any]:
        """Compute the results of one image at the output size.

        Args:
            instances: instances at the output size.
            logits: (C, H, W) over the padded input; NaN and infinity become +-`LARGEST_LOGIT`.
            image_size: height and width of the image in the padded input.
            score_thresh: minimum score of instances in the segmentation; None: the model's.
        """
        own = {} if score_thresh is None else {"score_thresh": score_thresh}
        scores = resize_scores(
            logits.nan_to_num(-LARGEST_LOGIT, LARGEST_LOGIT, -LARGEST_LOGIT),
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
            **{**self.merge_params, **own},
        )
        return {"instances": instances, "sem_seg": scores, "panoptic_seg": panoptic}


def semantic_labels(batched_inputs: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Return the labels of each image of a batch; DatasetError if one has none."""
    if not all("sem_seg" in x for x in batched_inputs):
        raise DatasetError(
            "PanopticSOLO requires semantic labels for training, but an image has no 'sem_seg': "
            "set DATASETS.TRAIN to a data set with sem_seg_file_name, such as "
            "coco_2017_train_panoptic_separated"
        )
    return [x["sem_seg"] for x in batched_inputs]
