"""Warning for config keys that are set but not read.

They belong to other models (MODEL.ROI_HEADS, MODEL.RPN, ...), or to another head, NMS, mask loss,
backbone, optimizer or schedule than the selected one.
"""

import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from solo_d2.config import configs_folder, default_config, find_config_file
from solo_d2.config.models import is_panoptic, is_solo
from solo_d2.config.rules import leaves
from solo_d2.inference import NMS
from solo_d2.losses import MASK_LOSSES
from solo_d2.modeling.backbones.timm import uses_own_statistics
from solo_d2.modeling.building import OF_USER, backbone_sections
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, has_mask_feature
from solo_d2.utils.errors import shown
from solo_d2.utils.user_code import is_of_user

logger = logging.getLogger("solo_d2")

# The keys to set instead, by section or key; "" if there is no equivalent. The longest match wins.
OTHER_MODELS = dict.fromkeys(
    (
        *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "MODEL.PROPOSAL_GENERATOR"),
        *("MODEL.RPN", "MODEL.ROI_HEADS", "MODEL.ROI_BOX_HEAD", "MODEL.ROI_BOX_CASCADE_HEAD"),
        *("MODEL.ROI_KEYPOINT_HEAD", "MODEL.RETINANET", "DATASETS.PROPOSAL_FILES_TRAIN"),
        *("DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN"),
        *("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "TEST.KEYPOINT_OKS_SIGMAS"),
        *("TEST.EXPECTED_RESULTS", "GLOBAL.HACK"),
    ),
    "",
) | {
    "MODEL.ANCHOR_GENERATOR": "MODEL.SOLO.NUM_GRIDS and MODEL.SOLO.SCALE_RANGES",
    "MODEL.RPN.IN_FEATURES": "MODEL.SOLO.IN_FEATURES",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "MODEL.SOLO.PRE_NMS_TOPK",
    "MODEL.RPN.NMS_THRESH": "MODEL.SOLO.NMS",
    "MODEL.ROI_HEADS.NAME": "MODEL.SOLO.HEAD.NAME",
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.SOLO.NUM_CLASSES",
    "MODEL.ROI_HEADS.IN_FEATURES": "MODEL.SOLO.IN_FEATURES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.SOLO.SCORE_THRESH_TEST before mask NMS and "
    "MODEL.SOLO.KEEP_THRESH_TEST after it",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.SOLO.NMS",
    "MODEL.ROI_MASK_HEAD": "MODEL.SOLO.HEAD and MODEL.SOLO.MASK_FEATURE",
    "MODEL.RETINANET.NUM_CLASSES": "MODEL.SOLO.NUM_CLASSES",
    "MODEL.RETINANET.IN_FEATURES": "MODEL.SOLO.IN_FEATURES",
    "MODEL.RETINANET.NUM_CONVS": "MODEL.SOLO.HEAD.NUM_CONVS",
    "MODEL.RETINANET.NORM": "MODEL.SOLO.HEAD.NORM",
    "MODEL.RETINANET.PRIOR_PROB": "MODEL.SOLO.HEAD.PRIOR_PROB",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "MODEL.SOLO.SCORE_THRESH_TEST before mask NMS and "
    "MODEL.SOLO.KEEP_THRESH_TEST after it",
    "MODEL.RETINANET.NMS_THRESH_TEST": "MODEL.SOLO.NMS",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "MODEL.SOLO.PRE_NMS_TOPK",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": "MODEL.SOLO.LOSS.FOCAL_ALPHA",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": "MODEL.SOLO.LOSS.FOCAL_GAMMA",
    "MODEL.SEM_SEG_HEAD.NAME": "MODEL.META_ARCHITECTURE",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": "the first of MODEL.SEM_SEG_HEAD.IN_FEATURES",
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": "MODEL.SOLO.LOSS",
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": "MODEL.META_ARCHITECTURE",
}
# Keys of other choices, by SOLVER.OPTIMIZER and SOLVER.LR_SCHEDULER_NAME.
BY_CHOICE: dict[str, dict[str, tuple[str, ...]]] = {
    "SOLVER.OPTIMIZER": {
        "SGD": ("MODEL.VIT.LR_DECAY", "MODEL.TIMM.LR_DECAY"),
        "AdamW": ("SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
    },
    "SOLVER.LR_SCHEDULER_NAME": {
        "WarmupMultiStepLR": ("SOLVER.BASE_LR_END", "SOLVER.NUM_DECAYS"),
        "WarmupCosineLR": ("SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.NUM_DECAYS"),
        "WarmupStepWithFixedGammaLR": ("SOLVER.STEPS", "SOLVER.BASE_LR_END"),
    },
}
# Sections that ENABLED switches off.
SWITCHED = (
    *("INPUT.CROP", "INPUT.LSJ", "SOLVER.AMP", "SOLVER.CLIP_GRADIENTS", "SOLVER.EMA"),
    *("TEST.AUG", "TEST.PRECISE_BN"),
)
# Keys that our configs set for several models at once.
_SHARED = (
    *("MODEL.MASK_ON", "MODEL.RESNETS.OUT_FEATURES"),
    *("MODEL.SOLO.MASK_FEATURE.CONV_DIM", "MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS"),
)
# Read by augmentation for every model.
_READ = ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE",)


def warn_of_unused_keys(
    cfg: Any, config_file: str | Path = "", overrides: Sequence[Any] = ()
) -> None:
    """Log one warning that lists the keys that the user has set but that are not read.

    Args:
        cfg: the config with all overrides.
        config_file: its file; keys in files of this project do not count.
        overrides: key, value, key, value, ... of the command line.
    """
    found = set_in_vain(cfg, config_file, overrides)
    if not found:
        return
    values = dict(leaves(cfg))
    lines = [f"{key} {shown(values[key])}{hint and f' ({hint})'}" for key, hint in found.items()]
    logger.warning(
        f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} as configured does not read these "
        f"keys, so they have no effect: {'; '.join(lines)}"
    )


def set_in_vain(
    cfg: Any, config_file: str | Path = "", overrides: Sequence[Any] = ()
) -> dict[str, str]:
    """Return the keys of `warn_of_unused_keys`, each with a hint, which may be empty."""
    if not is_solo(cfg):
        return {}
    by_choice = dict(_left_by_choices(cfg))
    defaults = dict(leaves(default_config()))
    on_command_line = {str(key) for key in overrides[::2]}
    in_file = _keys_of_file(config_file)
    if len(in_file) > len(defaults) / 2:
        # A complete config, as training saves it, has what our own configs set for other choices.
        in_file = set()
    found = {}
    for key, value in leaves(cfg):
        instead, choice = _entry(key, OTHER_MODELS), _entry(key, by_choice)
        if (instead is None and choice is None) or key in _READ or key not in defaults:
            continue
        # YAML has lists where defaults are tuples.
        differs = key not in _SHARED and json.dumps(value) != json.dumps(defaults[key])
        # Our configs may have set keys of another choice.
        by_user = differs and (instead is not None or key in in_file)
        if (by_user or key in on_command_line) and not (key == "MODEL.MASK_ON" and value):
            found[key] = f"not with {choice}" if instead is None else instead and f"set {instead}"
    return found


def _left_by_choices(cfg: Any) -> Iterator[tuple[str, str]]:
    """Yield the sections and keys that the config's choices do not use, each with the choice."""
    model = cfg.MODEL
    if not is_panoptic(cfg):
        for section in ("MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN"):
            yield section, f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE}"
    for key, choices in BY_CHOICE.items():
        section, name = key.split(".")
        value = cfg[section][name]
        yield from ((left, f"{key} {value}") for left in choices.get(value, ()))
    yield from _left_by_switches(cfg)
    yield from _left_by_nms_and_loss(model.SOLO)
    backbone, head = model.BACKBONE.NAME, model.SOLO.HEAD.NAME
    read = backbone_sections(cfg)
    for kind in ("RESNETS", "SWIN", "VIT", "REGNET", "TIMM") if read != OF_USER else ():
        if f"MODEL.{kind}" not in read:
            yield f"MODEL.{kind}", f"MODEL.BACKBONE.NAME {backbone}"
    if uses_own_statistics(cfg):
        for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
            yield key, "MODEL.TIMM.OWN_NORMALIZATION True"
    if head in SOLO_HEAD_REGISTRY and not is_of_user(SOLO_HEAD_REGISTRY.get(head)):
        dynamic = has_mask_feature(head)
        of_dynamic = ("MASK_FEATURE", "HEAD.KERNEL_SIZE", "HEAD.KERNEL_COORDS")
        for name in ("HEAD.NUM_COORD_CONVS",) if dynamic else of_dynamic:
            yield f"MODEL.SOLO.{name}", f"MODEL.SOLO.HEAD.NAME {head}"


def _left_by_switches(cfg: Any) -> Iterator[tuple[str, str]]:
    """Yield the keys of features that are switched off."""
    for section in SWITCHED:
        first, name = section.split(".")
        if not cfg[first][name].ENABLED:
            for key in set(cfg[first][name]) - {"ENABLED"}:
                yield f"{section}.{key}", f"{section}.ENABLED False"
    if cfg.INPUT.COPY_PASTE.PROB == 0:
        yield "INPUT.COPY_PASTE.INSTANCE_PROB", "INPUT.COPY_PASTE.PROB 0"
    if cfg.TEST.TILES.SIZE == 0:
        for key in ("OVERLAP", "WHOLE_IMAGE"):
            yield f"TEST.TILES.{key}", "TEST.TILES.SIZE 0"
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        yield "DATALOADER.REPEAT_THRESHOLD", f"SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}"


def _left_by_nms_and_loss(solo: Any) -> Iterator[tuple[str, str]]:
    """Yield the keys that are no parameters of the selected NMS and mask loss."""
    nms, loss = solo.NMS.TYPE, solo.LOSS.MASK_TYPE
    if nms in NMS:
        read = {name.upper() for name in inspect.signature(NMS[nms]).parameters}
        for name in set(solo.NMS) - read - {"TYPE"}:
            yield f"MODEL.SOLO.NMS.{name}", f"MODEL.SOLO.NMS.TYPE {nms}"
    if loss in MASK_LOSSES and "pos_weight" not in inspect.signature(MASK_LOSSES[loss]).parameters:
        yield "MODEL.SOLO.LOSS.MASK_POS_WEIGHT", f"MODEL.SOLO.LOSS.MASK_TYPE {loss}"


def _entry(key: str, table: Mapping[str, str]) -> str | None:
    """Return the entry of a table for a key or its innermost section; None if there is none."""
    while key:
        if key in table:
            return table[key]
        key = key.rpartition(".")[0]
    return None


def _keys_of_file(config_file: str | Path) -> set[str]:
    """Return the keys set in a config file of the user."""
    if not config_file:
        return set()
    file = find_config_file(str(config_file))
    if "://" in file or configs_folder().resolve() in Path(file).resolve().parents:
        return set()
    content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    return {key for key, _ in leaves(content)} if isinstance(content, dict) else set()
