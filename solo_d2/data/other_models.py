"""Keys by which Detectron2 prepares data for models of other kinds, and which ours do without."""

from detectron2.config import CfgNode

from solo_d2.config.models import is_solo


def without_other_inputs(cfg: CfgNode) -> CfgNode:
    """The config, or a copy by which Detectron2 prepares neither keypoints nor proposals for SOLO.

    With MODEL.KEYPOINT_ON it would ask the data set for names of keypoints and leave out images
    that have none; with MODEL.LOAD_PROPOSALS it would ask for files of proposals.
    """
    model = cfg.MODEL
    if not is_solo(cfg) or not (model.KEYPOINT_ON or model.LOAD_PROPOSALS):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.KEYPOINT_ON = cfg.MODEL.LOAD_PROPOSALS = False
    return cfg
