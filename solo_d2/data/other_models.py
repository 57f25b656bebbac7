"""Disable Detectron2's keypoint and proposal inputs, which SOLO does not use."""

from detectron2.config import CfgNode

from solo_d2.config.models import is_solo


def without_other_inputs(cfg: CfgNode) -> CfgNode:
    """Return the config or, if SOLO must disable keypoints or proposals, a changed copy.

    With MODEL.KEYPOINT_ON, Detectron2 requires keypoint names and drops images without keypoints;
    with MODEL.LOAD_PROPOSALS, it requires proposal files.
    """
    model = cfg.MODEL
    if not is_solo(cfg) or not (model.KEYPOINT_ON or model.LOAD_PROPOSALS):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.KEYPOINT_ON = cfg.MODEL.LOAD_PROPOSALS = False
    return cfg
