"""The augmentation of single images that a config asks for, by Detectron2's transforms."""

import copy
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

from solo_d2.data.input_checks import check_input_config


class _KeepsAPixel:
    """A resize or crop that leaves no side of 0 pixels, as of images of 8000 x 40."""

    def get_transform(self, image: Any) -> Any:
        transform = super().get_transform(image)  # type: ignore[misc]
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)  # type: ignore[misc]
        return max(1, height), max(1, width)


class _ResizeShortestEdge(_KeepsAPixel, T.ResizeShortestEdge):
    pass


class _ResizeScale(_KeepsAPixel, T.ResizeScale):
    pass


class _RandomCrop(_KeepsAPixel, T.RandomCrop):
    pass


_KEEPING: dict[type, type] = {
    kind.__bases__[1]: kind for kind in (_ResizeShortestEdge, _ResizeScale, _RandomCrop)
}


def keep_a_pixel(augmentations: Iterable[Any]) -> list[Any]:
    """Return the augmentations, changed so that none reduces a side of an image to 0 pixels."""
    result = []
    for augmentation in augmentations:
        if type(augmentation) in _KEEPING:
            augmentation = copy.copy(augmentation)
            augmentation.__class__ = _KEEPING[type(augmentation)]
        result.append(augmentation)
    return result


def build_train_augmentation(cfg: CfgNode) -> list[Any]:
    """Random scale, flip and crop of training images; ConfigError for unusable keys of INPUT."""
    check_input_config(cfg)
    scale, *others = build_augmentation(cfg, is_train=True)
    if not cfg.INPUT.LSJ.ENABLED:
        crop = cfg.INPUT.CROP
        first = [T.RandomCrop(crop.TYPE, crop.SIZE)] if crop.ENABLED else []
        return [*first, scale, *others]
    size = cfg.INPUT.LSJ.SIZE
    # Flipped before it is padded, so that the padding is right and below, as in a batch.
    return [
        T.ResizeScale(*cfg.INPUT.LSJ.SCALE_RANGE, target_height=size, target_width=size),
        *others,
        T.FixedSizeCrop((size, size), seg_pad_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
    ]


def moves_borders(cfg: CfgNode) -> bool:
    """Whether the training augmentation may cut objects, so that their boxes must be recomputed."""
    return bool(cfg.INPUT.CROP.ENABLED or cfg.INPUT.LSJ.ENABLED)


def without_randomness(cfg: CfgNode) -> CfgNode:
    """The config with every training image at its usual size: no flip, jitter or pasting.

    Crops stay: what they leave is enlarged to the size of an image.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (usual_short_side(cfg),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.RANDOM_FLIP = "none"
    low, high = cfg.INPUT.LSJ.SCALE_RANGE
    cfg.INPUT.LSJ.SCALE_RANGE = [min(max(1.0, low), high)] * 2
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
