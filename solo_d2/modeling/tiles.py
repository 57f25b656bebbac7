"""Tiled inference: a large image is searched in overlapping tiles, and the results are merged.

Small objects of large images vanish when the whole image is scaled to the size of the network's
input. Each tile is resized as an image is, so objects keep their size, and the grid has as many
cells for a tile as for an image.

Neighbouring tiles find the same objects. A mask NMS between tiles keeps each once, from a tile that
contains all of it if there is one. Masks are cropped to their boxes, so memory does not
grow with the size of the image times the number of objects.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor, nn

from solo_d2.config.rules import require
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.ops.mask_crops import MaskCrops, Window, crops_of, join_crops
from solo_d2.ops.view_fusion import SAME_INSTANCE_IOU
from solo_d2.utils.errors import ConfigError

Image = NDArray[np.uint8]
# Finds the instances of some images (H, W, 3), with masks of their sizes, on any device.
Find = Callable[[Sequence[Image]], Sequence[Instances]]
# A mask that comes as near to an inner border as this part of the tile's side is cut by it: masks
# are coarser than pixels.
BORDER = 1 / 64
# Preference of instances: whole in a tile, seen in the whole image, cut by the border of a tile.
WHOLE, IN_WHOLE_IMAGE, CUT = range(3)


@dataclass(frozen=True)
class Tiles:
    """How an image is divided.

    Attributes:
        size: side of a tile in pixels of the original image; smaller images are one tile.
        overlap: least pixels that neighbours share; None: a quarter of the size. Objects up to
            this size are whole in some tile.
        whole_image: whether the image is looked at as a whole too, for objects larger than that.
    """

    size: int
    overlap: int | None = None
    whole_image: bool = False

    def __post_init__(self) -> None:
        _check(self.size, self.overlap, "The size of tiles", "The overlap of tiles")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Tiles | None":
        """Read TEST.TILES; None if its SIZE is 0.

        Raises:
            ConfigError: a value cannot be.
        """
        keys = cfg.TEST.TILES
        if keys.SIZE == 0:
            return None
        _check(keys.SIZE, keys.OVERLAP, "TEST.TILES.SIZE", "TEST.TILES.OVERLAP")
        return cls(keys.SIZE, keys.OVERLAP, keys.WHOLE_IMAGE)

    @property
    def shared(self) -> int:
        """The least overlap in pixels."""
        return self.size // 4 if self.overlap is None else self.overlap

    def windows(self, image_size: tuple[int, int]) -> list[Window]:
        """Return the tiles of an image, row by row: all of one size, evenly spread."""
        rows, columns = (self._spans(side) for side in image_size)
        return [(x, y, right, bottom) for y, bottom in rows for x, right in columns]

    def _spans(self, side: int) -> list[tuple[int, int]]:
        length = min(self.size, side)
        num = 1 + -(-(side - length) // (self.size - self.shared))
        starts = np.linspace(0, side - length, num).astype(int).tolist()
        return [(start, start + length) for start in starts]


def _check(size: Any, overlap: Any, size_name: str, overlap_name: str) -> None:
    require(_is_whole(size) and size >= 1, size_name, size, "a whole number of pixels, at least 1")
    allowed = f"None or a whole number of pixels, from 0 to less than the size of a tile ({size})"
    fits = overlap is None or (_is_whole(overlap) and 0 <= overlap < size)
    require(fits, overlap_name, overlap, allowed)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require_mergeable(*, panoptic: bool, contours: bool) -> None:
    """Raise a ConfigError for panoptic and contour models, whose results cannot be merged."""
    if panoptic or contours:
        kind = "panoptic" if panoptic else "a model of contours"
        raise ConfigError(
            f"Tiled inference merges the masks of instances, but the model is {kind}: set "
            "TEST.TILES.SIZE to 0, and give the predictor no tiles"
        )


def find_in_tiles(
    image: Image, tiles: Tiles, find: Find, resize: T.ResizeShortestEdge, *, batch_size: int = 1
) -> Instances:
    """Find the instances of a large image.

    Beside the results a batch of tiles takes memory, but no mask of the size of the image.

    Args:
        image: (H, W, 3) uint8.
        tiles: how it is divided.
        find: runs the model; resizes images itself.
        resize: how it does that.
        batch_size: tiles that are given to `find` at once.

    Returns:
        On the CPU, by falling score: scores, pred_classes, pred_masks as `MaskCrops`, pred_boxes.
    """
    size = image.shape[0], image.shape[1]
    windows = tiles.windows(size)
    found: list[Instances] = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        parts = [image[top:bottom, left:right] for left, top, right, bottom in batch]
        for window, instances in zip(batch, find(parts), strict=True):
            crops = crops_of(instances.pred_masks).to("cpu").moved(window[0], window[1], size)
            cut = _is_cut(crops.boxes(), window, size, margin=max(1, round(tiles.size * BORDER)))
            found.append(_with_ranks(instances, crops, torch.where(cut, CUT, WHOLE)))
    if tiles.whole_image and len(windows) > 1:
        found.append(_find_in_whole(image, tiles, find, resize))
    return merge_tiles(found, size)


def _find_in_whole(
    image: Image, tiles: Tiles, find: Find, resize: T.ResizeShortestEdge
) -> Instances:
    """Find the objects that are larger than the overlap, and so may be whole in no tile."""
    size = image.shape[0], image.shape[1]
    transform = resize.get_transform(image)
    # Masks are made in no larger size than that of the network's input.
    smaller = getattr(transform, "new_h", size[0]) < size[0]
    (instances,) = find([transform.apply_image(image) if smaller else image])
    crops = crops_of(instances.pred_masks).to("cpu")
    boxes = crops.boxes() * (size[0] / instances.image_size[0])
    large = ((boxes[:, 2:] - boxes[:, :2]).amax(dim=1) > tiles.shared).nonzero()[:, 0]
    crops = crops[large].resized(size)
    ranks = torch.full((len(large),), IN_WHOLE_IMAGE)
    return _with_ranks(instances[large.to(instances.scores.device)], crops, ranks)


def _is_cut(boxes: Tensor, window: Window, image_size: tuple[int, int], *, margin: int) -> Tensor:
    """Return whether each box (N, 4) touches an inner border of its tile, (N,) bool."""
    inner = torch.tensor(window).float()
    start, end = inner[:2], inner[2:]
    at_start = (boxes[:, :2] < start + margin) & (start > 0)
    at_end = (boxes[:, 2:] > end - margin) & (end < torch.tensor(image_size[::-1]))
    return (at_start | at_end).any(dim=1)


def _with_ranks(instances: Instances, crops: MaskCrops, ranks: Tensor) -> Instances:
    return Instances(
        crops.image_size,
        scores=instances.scores.cpu(),
        pred_classes=instances.pred_classes.cpu(),
        pred_masks=crops,
        ranks=ranks,
    )


def merge_tiles(found: Sequence[Instances], image_size: tuple[int, int]) -> Instances:
    """Join what was found in the tiles of an image, each object once.

    A hard mask NMS: instances that are whole in their tile come first, those of the whole image
    second, those that are cut last; each by falling score. An instance is removed if it overlaps a
    kept one of its class from another tile by more than `SAME_INSTANCE_IOU`: IoU, but for one that
    is cut the part of itself. Instances of one tile are left as the model's own NMS left them.

    Args:
        found: of each tile scores, pred_classes, pred_masks (`MaskCrops` of the whole image) and
            ranks (N,) int64, one of `WHOLE`, `IN_WHOLE_IMAGE` and `CUT`.
        image_size: height and width.

    Returns:
        The remaining ones by falling score, with pred_boxes and without ranks.
    """
    scores, classes, ranks = (
        torch.cat([instances.get(name) for instances in found])
        for name in ("scores", "pred_classes", "ranks")
    )
    masks = join_crops([x.pred_masks for x in found], image_size, torch.device("cpu"))
    tile = torch.arange(len(found)).repeat_interleave(torch.tensor([len(x) for x in found]))
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[ranks[by_score].argsort(stable=True)]
    masks, classes, ranks, tile = masks[order], classes[order], ranks[order], tile[order]
    keep = torch.ones(len(order), dtype=torch.bool)
    # In the order of the better one, which is then known to be kept or not.
    for better, worse in _duplicates(masks, classes, tile, ranks == CUT):
        if keep[better]:
            keep[worse] = False
    kept = keep.nonzero()[:, 0]
    kept = kept[scores[order[kept]].argsort(descending=True, stable=True)]
    return Instances(
        image_size,
        scores=scores[order[kept]],
        pred_classes=classes[kept],
        pred_masks=masks[kept],
        pred_boxes=Boxes(masks.boxes()[kept]),
    )


def _duplicates(
    masks: MaskCrops, classes: Tensor, tile: Tensor, cut: Tensor
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of two tiles that are one object: the better one's index, then the other's.

    Args:
        masks: (M, H, W), best first.
        classes: (M,) int64.
        tile: (M,) int64, in which each was found.
        cut: (M,) bool.
    """
    boxes, windows = masks.boxes(), masks.windows
    parts = [part.numpy() for part in masks.parts()]
    areas = [np.count_nonzero(part) for part in parts]
    for better in range(len(masks)):
        later = slice(better + 1, None)
        near = (boxes[later, :2] < boxes[better, 2:]) & (boxes[later, 2:] > boxes[better, :2])
        rivals = near.all(dim=1) & (tile[later] != tile[better])
        rivals &= classes[later] == classes[better]
        for worse in (rivals.nonzero()[:, 0] + better + 1).tolist():
            shared = _num_shared(parts, windows, better, worse)
            whole = areas[worse] if cut[worse] else areas[better] + areas[worse] - shared
            if shared > SAME_INSTANCE_IOU * whole:
                yield better, worse


def _num_shared(parts: Sequence[NDArray[np.bool_]], windows: Sequence[Window], *pair: int) -> int:
    """Return the number of pixels that two masks, whose boxes overlap, have in common."""
    left, top = (max(windows[index][side] for index in pair) for side in (0, 1))
    right, bottom = (min(windows[index][side] for index in pair) for side in (2, 3))
    a, b = (
        parts[index][top - y : bottom - y, left - x : right - x]
        for index in pair
        for x, y, *_ in [windows[index]]
    )
    return int(np.count_nonzero(a & b))


class SOLOWithTiles(nn.Module):
    """A SOLO model that looks at images in the tiles of TEST.TILES.

    It is called as the model itself; its results are those of `find_in_tiles`.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """Wrap a model.

        Args:
            cfg: with TEST.TILES, and INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST for the tiles.
            model: in evaluation mode.

        Raises:
            ConfigError: it is no SOLO model, or not one of masks alone.
        """
        super().__init__()
        tiles = Tiles.from_config(cfg)
        assert tiles is not None
        if not isinstance(model, SOLO):
            raise ConfigError(
                f"TEST.TILES.SIZE is {tiles.size}, but must be 0 for a {type(model).__name__}: "
                "only SOLO models have tiled inference"
            )
        require_mergeable(panoptic=model.predicts_stuff, contours=model.mask_target == "contour")
        self.model, self.tiles = model, tiles
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Infer, on Detectron2's inputs with "image" at its own size, (C, H, W) of 8 bits."""
        images = (x["image"].permute(1, 2, 0).byte().cpu().numpy() for x in batched_inputs)
        return [
            {"instances": find_in_tiles(image, self.tiles, self._find, self.resize)}
            for image in images
        ]

    @torch.no_grad()
    def _find(self, images: Sequence[Image]) -> list[Instances]:
        inputs = []
        for image in images:
            pixels = self.resize.get_transform(image).apply_image(np.ascontiguousarray(image))
            tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
        return [output["instances"] for output in self.model(inputs)]
