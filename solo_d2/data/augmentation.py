"""Build the augmentation of training images from a config, with Detectron2's transforms."""

import copy
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

from solo_d2.data.input_checks import check_input_config


class _KeepsAPixel:
    """Mixin for a resize or crop that keeps every side at least 1 pixel, even of narrow images."""

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
    """Return the augmentations, modified to keep every side of an image at least 1 pixel."""
    result = []
    for augmentation in augmentations:
        if type(augmentation) in _KEEPING:
            augmentation = copy.copy(augmentation)
            augmentation.__class__ = _KEEPING[type(augmentation)]
        result.append(augmentation)
    return result


def build_train_augmentation(cfg: CfgNode) -> list[Any]:
    """Build random scale, flip and crop; ConfigError for invalid keys of INPUT."""
    check_input_config(cfg)
    scale, *others = build_augmentation(cfg, is_train=True)
    if not cfg.INPUT.LSJ.ENABLED:
        crop = cfg.INPUT.CROP
        first = [T.RandomCrop(crop.TYPE, crop.SIZE)] if crop.ENABLED else []
        return [*first, scale, *others]
    size = cfg.INPUT.LSJ.SIZE
    # Flip before padding, so that the padding is at the right and bottom, as in a batch.
    return [
        T.ResizeScale(*cfg.INPUT.LSJ.SCALE_RANGE, target_height=size, target_width=size),
        *others,
        T.FixedSizeCrop((size, size), seg_pad_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
    ]


def without_randomness(cfg: CfgNode) -> CfgNode:
    """Return a config with training images at their typical size: no flip, jitter or copy-paste.

    Crops are kept, because the cropped image is resized to the size of a whole one.
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
    """Return the median short side of training images in pixels, or the side of LSJ's square."""
    if cfg.INPUT.LSJ.ENABLED:
        return int(cfg.INPUT.LSJ.SIZE)
    sides = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        return int(sum(sides) // 2)
    return int(sides[len(sides) // 2])
