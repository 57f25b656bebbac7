"""The augmentation of single images that a config asks for, by Detectron2's transforms."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

from solo_d2.errors import ConfigError


def build_train_augmentation(cfg: CfgNode) -> list[Any]:
    """Random scale, flip and crop of training images.

    Raises:
        ConfigError: keys of INPUT do not go together.
    """
    scale, *others = build_augmentation(cfg, is_train=True)
    if not cfg.INPUT.LSJ.ENABLED:
        crop = cfg.INPUT.CROP
        first = [T.RandomCrop(crop.TYPE, crop.SIZE)] if crop.ENABLED else []
        return [*first, scale, *others]
    _check_jitter(cfg)
    size = cfg.INPUT.LSJ.SIZE
    # Flipped before it is padded, so that the padding is right and below, as in a batch.
    return [
        T.ResizeScale(*cfg.INPUT.LSJ.SCALE_RANGE, target_height=size, target_width=size),
        *others,
        T.FixedSizeCrop((size, size), seg_pad_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
    ]


def moves_borders(cfg: CfgNode) -> bool:
    """Whether the training augmentation may cut objects, so that their boxes must be found anew."""
    return bool(cfg.INPUT.CROP.ENABLED or cfg.INPUT.LSJ.ENABLED)


def without_randomness(cfg: CfgNode) -> CfgNode:
    """The config with every training image at its usual size: no flip, crop, jitter or pasting."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (usual_short_side(cfg),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.LSJ.SCALE_RANGE = [1.0, 1.0]
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    return cfg


def usual_short_side(cfg: CfgNode) -> int:
    """Short side of a training image in pixels: the middle one, or that of the jitter's square."""
    if cfg.INPUT.LSJ.ENABLED:
        return int(cfg.INPUT.LSJ.SIZE)
    sides = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        return int(sum(sides) // 2)
    return int(sides[len(sides) // 2])


def _check_jitter(cfg: CfgNode) -> None:
    size, scales = cfg.INPUT.LSJ.SIZE, cfg.INPUT.LSJ.SCALE_RANGE
    if cfg.INPUT.CROP.ENABLED:
        raise ConfigError(
            "INPUT.LSJ.ENABLED and INPUT.CROP.ENABLED are both True, but large scale jitter crops "
            "by itself: set one of them to False"
        )
    if size < 1:
        raise ConfigError(f"INPUT.LSJ.SIZE is {size}, but must be a positive number of pixels")
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise ConfigError(
            f"INPUT.LSJ.SCALE_RANGE is {scales}, but must be two positive numbers, the smaller "
            "first"
        )
