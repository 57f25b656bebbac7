"""Transformed masks from run lengths, at a cost that does not depend on the size of the image.

Resizes to nearest pixels, flips, crops and padding take whole rows and columns: each row of the
result is one row of the mask or padding, and so is each column. Pixels are looked up in the run
lengths, inside the columns that the object has. H W rows and columns of the mask, h w of the
result.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from detectron2.data.transforms import TransformList
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.segmentations import decode_counts

_PADDING = -1
# Transforms that leave segmentations as they are.
_KEEP = (T.NoOpTransform, T.BlendTransform, T.ColorTransform, T.PILColorTransform)


class _Axis:
    """Where the rows, or the columns, of a result come from.

    Attributes:
        sampled: (S,) int64, lines of the mask that the result has, in order.
        number: (size + 1,) int64, for each line of the mask, how many sampled lines are before it.
        target: lines of the result that are no padding, as an index.
        source: for each of these, its place in `sampled`, as an index.
    """

    def __init__(self, lines: NDArray[np.int64], size: int):
        """Make the axis.

        Args:
            lines: for each line of the result, the line of the mask, or `_PADDING`.
            size: lines of the mask.
        """
        places = np.flatnonzero(lines != _PADDING)
        self.sampled, self.source = np.unique(lines[places], return_inverse=True)
        self.number = np.searchsorted(self.sampled, np.arange(size + 1))
        self.target = places

    def within(self, sampled: tuple[int, int]) -> NDArray[np.intp]:
        """Places in `target` and `source` of a range of the sampled lines."""
        return np.flatnonzero((self.source >= sampled[0]) & (self.source < sampled[1]))


class MaskSampler:
    """Draws transformed masks of one image."""

    def __init__(self, rows: _Axis, columns: _Axis, fill: bool, size: tuple[int, int]):
        """Use `mask_sampler`, or `plain_sampler`."""
        self.rows = rows
        self.columns = columns
        self.fill = fill
        self.height, self.width = size

    def draw(self, rle: dict[str, Any], out: NDArray[np.bool_]) -> None:
        """Draw the transformed mask of an RLE.

        Args:
            rle: compressed, of H x W pixels; as of `clean_segmentation`.
            out: (h, w), all False.
        """
        if self.fill:
            out[:] = True
            out[_ix(self.rows.target, self.columns.target)] = False
        runs = decode_counts(rle["counts"])
        # Where the value changes: starts and ends of the runs of ones in turn.
        edges = np.cumsum(runs)[: len(runs) // 2 * 2]
        if not len(edges):
            return
        rows, columns = self._lines_within(edges[0::2], edges[1::2] - 1)
        pixels = self._pixels(edges, rows, columns)
        below, beside = self.rows.within(rows), self.columns.within(columns)
        pixels = pixels[:, _index(self.rows.source[below] - rows[0])]
        pixels = pixels[_index(self.columns.source[beside] - columns[0])]
        out[_ix(self.rows.target[below], self.columns.target[beside])] = pixels.T

    def _lines_within(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last + 1 of the sampled rows and columns that runs of ones may reach.

        Args:
            starts: places of their first pixels; a run without pixels may say anything.
            ends: places of their last pixels.
        """
        (columns, rows), (end_columns, end_rows) = (
            np.divmod(places.clip(0, self.height * self.width - 1), self.height)
            for places in (starts, ends)
        )
        if (columns == end_columns).all():
            top, bottom = int(rows.min()), int(end_rows.max()) + 1
        else:
            top, bottom = 0, self.height
        return (
            (int(self.rows.number[top]), int(self.rows.number[bottom])),
            (int(self.columns.number[columns[0]]), int(self.columns.number[end_columns[-1] + 1])),
        )

    def _pixels(
        self, edges: NDArray[np.int64], rows: tuple[int, int], columns: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Values at a range of the sampled columns and of the sampled rows, columns first."""
        (top, bottom), (left, right) = rows, columns
        changes = np.zeros((max(right - left, 0), max(bottom - top, 0) + 1), np.uint8)
        if not changes[:, :-1].size:
            return changes[:, :-1].view(np.bool_)
        column, row = np.divmod(edges, self.height)
        place = self.columns.number[column.clip(max=self.width)]
        sampled = self.columns.number[(column + 1).clip(max=self.width)] > place
        # A change at the first row counts for the column as a whole.
        inside = sampled & (row > 0)
        np.add.at(changes, (place[inside] - left, self.rows.number[row[inside]] - top), 1)
        first_pixels = self.columns.sampled[left:right] * self.height
        changes[:, 0] += (np.searchsorted(edges, first_pixels, side="right") & 1).astype(np.uint8)
        values = np.cumsum(changes[:, :-1], axis=1, dtype=np.uint8)
        return (values & 1).view(np.bool_)


def _index(places: NDArray[np.int64]) -> Any:
    """The same as a slice, where it is one: views are faster than copies."""
    if len(places) and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    if len(places) and (np.diff(places) == -1).all():
        end = int(places[-1]) - 1
        return slice(int(places[0]), None if end < 0 else end, -1)
    return places


def _ix(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Any:
    indices = _index(rows), _index(columns)
    if any(isinstance(index, slice) for index in indices):
        return indices
    return np.ix_(rows, columns)


def plain_sampler(height: int, width: int) -> MaskSampler:
    """The sampler that draws masks of h x w pixels as they are."""
    rows, columns = (_Axis(np.arange(size), size) for size in (height, width))
    return MaskSampler(rows, columns, False, (height, width))


def mask_sampler(transforms: TransformList, height: int, width: int) -> MaskSampler | None:
    """The sampler that draws what `transforms.apply_segmentation` makes of decoded masks.

    Args:
        transforms: by which the image was augmented.
        height: of the image before that, and of the masks.
        width: likewise.

    Returns:
        None for transforms that do not take whole rows and columns, or are unknown.
    """
    lines = np.arange(height), np.arange(width)
    fills: set[bool] = set()
    for transform in _flat(transforms):
        moved = _move(transform, *lines, fills)
        if moved is None:
            return None
        lines = moved
    if len(fills) > 1 or not all(map(len, lines)):
        return None
    rows, columns = _Axis(lines[0], height), _Axis(lines[1], width)
    return MaskSampler(rows, columns, fills == {True}, (height, width))


def _flat(transforms: TransformList) -> list[Any]:
    parts = []
    for transform in transforms.transforms:
        parts += _flat(transform) if type(transform) is TransformList else [transform]
    return parts


def _move(
    transform: Any, rows: NDArray[np.int64], columns: NDArray[np.int64], fills: set[bool]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows and columns after a transform; `fills` gets the value of padding."""
    kind, t = type(transform), transform
    if kind in _KEEP:
        return rows, columns
    if kind is T.HFlipTransform:
        return rows, columns[::-1]
    if kind is T.VFlipTransform:
        return rows[::-1], columns
    if kind is T.CropTransform:
        return rows[t.y0 : t.y0 + t.h], columns[t.x0 : t.x0 + t.w]
    if kind is T.PadTransform:
        fills.add(bool(t.seg_pad_value))
        return (
            np.pad(rows, (t.y0, t.y1), constant_values=_PADDING),
            np.pad(columns, (t.x0, t.x1), constant_values=_PADDING),
        )
    if kind is T.ResizeTransform and (len(rows), len(columns)) == (t.h, t.w):
        return _nearest(rows, t.new_h), _nearest(columns, t.new_w)
    return None


def _nearest(lines: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """What Pillow takes for each of `size` lines."""
    places = Image.fromarray(np.arange(len(lines), dtype=np.int32)[None])
    return lines[np.asarray(places.resize((size, 1), Image.Resampling.NEAREST))[0]]


def transform_masks(
    segmentations: Sequence[Any],
    transforms: TransformList,
    image_shape: tuple[int, int],
    original_shape: tuple[int, int],
) -> NDArray[np.bool_]:
    """Transform the masks of all objects of an image.

    Corners of polygons are moved, not clipped: drawing them clips them, and Detectron2 would need
    the package shapely for it. RLEs are resized to nearest pixels, as by Detectron2.

    Args:
        segmentations: polygons or compressed RLEs of H x W pixels, as of `clean_segmentation`.
        transforms: by which the image was augmented.
        image_shape: h and w.
        original_shape: H and W.

    Returns:
        (N, h, w).
    """
    masks = np.zeros((len(segmentations), *image_shape), np.bool_)
    plain = plain_sampler(*image_shape)
    sampler = mask_sampler(transforms, *original_shape)
    for segmentation, mask in zip(segmentations, masks, strict=True):
        if isinstance(segmentation, list):
            points = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
            polygons = [transforms.apply_coords(part).reshape(-1) for part in points]
            plain.draw(coco_mask.merge(coco_mask.frPyObjects(polygons, *image_shape)), mask)
        elif sampler is not None:
            sampler.draw(segmentation, mask)
        else:
            mask[:] = transforms.apply_segmentation(coco_mask.decode(segmentation))
    return masks
