"""Checks of one COCO segmentation, and its box. No Detectron2 needed."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# Points nearer than this to one straight line, in pixels, enclose no area.
_FLAT = 1e-6


def clean_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """Check a segmentation, and drop the polygons that enclose nothing.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...], or RLE {"size": [H, W], "counts": ...}
            with counts as a list (uncompressed) or as str or bytes (compressed).
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        The polygons that enclose an area, or the RLE, compressed. None if nothing is left: no
        polygon with 3 points, an area and finite coordinates, or an RLE without pixels.

    Raises:
        ValueError: it is neither, or an RLE that does not fit the image. The message says why.
    """
    if isinstance(segmentation, dict):
        return _clean_rle(segmentation, height, width)
    if isinstance(segmentation, list):
        if segmentation and not isinstance(segmentation[0], (list, tuple, np.ndarray)):
            raise ValueError(
                "the segmentation is a flat list, not a list of polygons "
                "[[x0, y0, x1, y1, ...], ...]"
            )
        return [polygon for polygon in segmentation if _has_area(polygon)] or None
    raise ValueError(
        "the segmentation must be a list of polygons or an RLE with 'size' and 'counts', it is "
        f"{'missing' if segmentation is None else type(segmentation).__name__}"
    )


def _has_area(polygon: Any) -> bool:
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"a polygon must be a list of numbers, it is {polygon!r:.80}") from None
    if points.ndim != 1:
        raise ValueError("a polygon must be a flat list [x0, y0, x1, y1, ...]")
    if points.size < 6 or points.size % 2 or not np.isfinite(points).all():
        return False
    x, y = points[0::2] - points[0], points[1::2] - points[1]
    lengths = np.hypot(x, y)
    far = int(lengths.argmax())
    if lengths[far] < _FLAT:
        return False
    offsets = (x * y[far] - y * x[far]) / lengths[far]
    return bool(np.abs(offsets).max() > _FLAT)


def _clean_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any] | None:
    size, counts = rle.get("size"), rle.get("counts")
    if size is None or counts is None:
        raise ValueError("the RLE lacks 'size' or 'counts'")
    if list(size) != [height, width]:
        raise ValueError(
            f"the RLE is for {_times(size)} pixels (height x width), the image has {height} x "
            f"{width}"
        )
    if isinstance(counts, (str, bytes)):
        runs = decode_counts(counts)
    elif isinstance(counts, list):
        try:
            runs = np.asarray(counts, np.int64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("the RLE's 'counts' must be whole numbers") from None
    else:
        raise ValueError(f"the RLE's 'counts' must be a str or a list, not {type(counts).__name__}")
    if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(
            f"the RLE's 'counts' cover {int(runs.sum())} pixels, the image has {height * width}"
        )
    if int(runs[1::2].sum()) == 0:
        return None
    if isinstance(counts, list):
        return dict(
            coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        )
    return {"size": [height, width], "counts": counts}


def _times(size: Any) -> str:
    return " x ".join(str(side) for side in size) if isinstance(size, (list, tuple)) else str(size)


def decode_counts(counts: str | bytes) -> NDArray[np.int64]:
    """Run lengths of a compressed RLE, checked: pycocotools reads beyond a damaged one.

    Five bits a character (from "0" on) with a continuation bit, the last with a sign bit; from the
    fourth run on, the difference to the run before the last.

    Returns:
        (R,) int64 runs of 0 and 1 in turn, starting with 0; column by column.

    Raises:
        ValueError: the text is not a compressed RLE.
    """
    data = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    last = (codes & 0x20) == 0
    if (codes < 0).any() or (codes > 63).any() or not last[-1]:
        raise ValueError("the RLE's 'counts' are damaged")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if int(lengths.max()) > 7:
        raise ValueError("the RLE's 'counts' are damaged")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    runs -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def segmentation_box(segmentation: Any) -> list[float]:
    """Box of a clean segmentation: [x, y, width, height] in pixels."""
    if isinstance(segmentation, dict):
        return [float(value) for value in coco_mask.toBbox(segmentation)]
    points = np.concatenate([np.asarray(polygon, np.float64) for polygon in segmentation])
    low = points[0::2].min(), points[1::2].min()
    high = points[0::2].max(), points[1::2].max()
    return [float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])]


def is_box(box: Any) -> bool:
    """Whether a value is [x, y, width, height] of finite numbers with a positive size."""
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)
        and box[2] > 0
        and box[3] > 0
    )
