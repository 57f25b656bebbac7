"""Detectron2's panoptic merge behind the signature of ours, to compare the two."""

from types import SimpleNamespace
from typing import Any

from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from torch import Tensor


def merge_panoptic_detectron2(
    masks: Tensor,
    scores: Tensor,
    classes: Tensor,
    semantic: Tensor,
    *,
    overlap_thresh: float = 0.5,
    stuff_area_limit: int = 4096,
    score_thresh: float = 0.5,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Call Detectron2's function; arguments and result are those of `merge_panoptic`.

    It needs neither boxes nor the number of labels, leaves the order of equal scores open, and can
    list segments without pixels.
    """
    instances = SimpleNamespace(pred_masks=masks, scores=scores, pred_classes=classes)
    thresholds = (overlap_thresh, stuff_area_limit, score_thresh)
    return combine_semantic_and_instance_outputs(instances, semantic, *thresholds)
