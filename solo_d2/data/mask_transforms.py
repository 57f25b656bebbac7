"""Transform instance masks, given as polygons or RLE, like their image.

Nearest-neighbour resizes, flips, crops and padding move whole rows and columns, so a mask is
transformed by indexing rows and columns inside its box. Other transforms are applied to the whole
mask. H W rows and columns before the transforms, h w after them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from detectron2.data.transforms import TransformList
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.cropped_masks import CroppedMasks, crop_masks
from solo_d2.data.segmentations import decode_counts

# Marks padded rows and columns.
_PADDING = -1
# Transforms that do not change segmentations.
_KEEP = (T.NoOpTransform, T.BlendTransform, T.ColorTransform, T.PILColorTransform)

Lines = NDArray[np.int64]
# Left column, top row, and the pixels (rows, columns) to the right of and below them.
Part = tuple[int, int, NDArray[np.bool_]]


def transform_masks(
    segmentations: Sequence[Any],
    transforms: TransformList,
    image_shape: tuple[int, int],
    original_shape: tuple[int, int],
) -> CroppedMasks:
    """Transform the masks of all objects of an image.

    Polygons are not clipped, since drawing clips them and Detectron2 would need the package shapely
    for it. RLE masks are resized to nearest pixels as in Detectron2. Padding is always background.

    Args:
        segmentations: polygons or compressed RLE of H x W pixels; see `clean_segmentation`.
        transforms: transforms of the image.
        image_shape: h and w.
        original_shape: H and W.

    Returns:
        N masks of h x w pixels.
    """
    unmoved = np.arange(image_shape[0]), np.arange(image_shape[1])
    sources = source_lines(transforms, *original_shape)

    def transform(segmentation: Any) -> Part:
        if isinstance(segmentation, list):
            # Copies, since transforms modify arrays in place.
            points = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
            polygons = [transforms.apply_coords(part).reshape(-1) for part in points]
            return _draw(coco_mask.merge(coco_mask.frPyObjects(polygons, *image_shape)), *unmoved)
        if sources is not None:
            return _draw(segmentation, *sources)
        return 0, 0, transforms.apply_segmentation(coco_mask.decode(segmentation)) != 0

    return crop_masks(map(transform, segmentations), image_shape)


def _draw(rle: dict[str, Any], rows: Lines, columns: Lines) -> Part:
    """Draw the mask of an RLE with the given source row and column of each row and column."""
    left, top, width, height = coco_mask.toBbox(rle).astype(int)
    inside_rows = np.flatnonzero((rows >= top) & (rows < top + height))
    inside_columns = np.flatnonzero((columns >= left) & (columns < left + width))
    if not len(inside_rows) or not len(inside_columns):
        return 0, 0, np.zeros((0, 0), np.bool_)
    by_column = _decode_columns(rle, left, width)
    pixels = by_column[columns[inside_columns] - left].T[rows[inside_rows]]
    return int(inside_columns[0]), int(inside_rows[0]), pixels


def _decode_columns(rle: dict[str, Any], left: int, width: int) -> NDArray[np.bool_]:
    """Decode (width, H) bool: the columns of a mask from `left` on."""
    height = rle["size"][0]
    first, last = left * height, (left + width) * height
    edges = np.cumsum(decode_counts(rle["counts"])).clip(first, last)
    runs = np.diff(edges, prepend=first, append=last)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)


def source_lines(transforms: TransformList, height: int, width: int) -> tuple[Lines, Lines] | None:
    """Return the source row and column, in a mask (height, width), of each row and column.

    Returns:
        (h,) and (w,) int64, `_PADDING` for padding; None for transforms that do not move whole rows
        and columns, or are unknown.
    """
    rows, columns = np.arange(height), np.arange(width)
    for t in _flat(transforms):
        kind = type(t)
        if kind is T.HFlipTransform:
            columns = columns[::-1]
        elif kind is T.VFlipTransform:
            rows = rows[::-1]
        elif kind is T.CropTransform:
            rows, columns = rows[t.y0 : t.y0 + t.h], columns[t.x0 : t.x0 + t.w]
        elif kind is T.PadTransform:
            rows = np.pad(rows, (t.y0, t.y1), constant_values=_PADDING)
            columns = np.pad(columns, (t.x0, t.x1), constant_values=_PADDING)
        elif kind is T.ResizeTransform and (len(rows), len(columns)) == (t.h, t.w):
            rows, columns = _nearest(rows, t.new_h), _nearest(columns, t.new_w)
        elif kind not in _KEEP:
            return None
    return rows, columns


def _flat(transforms: TransformList) -> Iterator[Any]:
    for transform in transforms.transforms:
        if type(transform) is TransformList:
            yield from _flat(transform)
        else:
            yield transform


def _nearest(lines: Lines, size: int) -> Lines:
    """Return the lines that Pillow picks when resizing to `size` lines."""
    places = Image.fromarray(np.arange(len(lines), dtype=np.int32)[None])
    return lines[np.asarray(places.resize((size, 1), Image.Resampling.NEAREST))[0]]
