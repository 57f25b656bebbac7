"""Check, convert and measure COCO segmentations. Does not import Detectron2."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from solo_d2.data.problems import Refusal
from solo_d2.utils.errors import shown

# Polygons whose points are within this distance of a line, in pixels, enclose no area.
_FLAT = 1e-6
# pycocotools allocates memory for each pixel along an outline, so its length is limited; less for
# small images, which may be enlarged.
_LONGEST_OUTLINE = 2**24
_USUAL_SIZE = 2048
# Floats represent all integers below this.
_MOST_EXACT = 2**53
_OTHER_FORM, _DAMAGED = "segmentation of another form", "RLE damaged"


def clean_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """Check a segmentation, and drop polygons that enclose nothing.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...], or RLE {"size": [H, W], "counts": ...}
            with counts as a list (uncompressed) or as str or bytes (compressed).
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The polygons with at least 3 points, an area and finite coordinates, or the compressed RLE.
        None without such a polygon, or for an RLE without pixels.

    Raises:
        Refusal: the segmentation is neither, the RLE does not fit the image, or a polygon is too
            far outside or too long to be drawn.
    """
    if isinstance(segmentation, dict):
        return _clean_rle(segmentation, height, width)
    if isinstance(segmentation, list) and not any(map(np.isscalar, segmentation[:1])):
        limit = _LONGEST_OUTLINE * min(1.0, max(height, width) / _USUAL_SIZE)
        kept = [part for part in segmentation if polygon_defect(part, limit) is None]
        # Convert strings to numbers; keep all other polygons.
        return [_array(p).tolist() if str in set(map(type, p)) else p for p in kept] or None
    reason = (
        "'segmentation' must be a list of polygons [[x0, y0, x1, y1, ...], ...] or an RLE with "
        f"'size' and 'counts', it is {shown(segmentation)}"
    )
    raise Refusal("segmentation missing" if segmentation is None else _OTHER_FORM, reason)


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Convert a segmentation to compressed RLE; see `clean_segmentation`."""
    clean = clean_segmentation(segmentation, height, width)
    if clean is None:
        return dict(coco_mask.encode(np.zeros((height, width), np.uint8, order="F")))
    if isinstance(clean, list):
        clean = dict(coco_mask.merge(coco_mask.frPyObjects(clean, height, width)))
    return clean


def _array(values: Any) -> NDArray[Any]:
    """Return an array of numbers, also from strings; its kind is not in "iuf" for other values."""
    try:
        array = np.asarray(values)
        return array.astype(np.float64) if array.dtype.kind == "U" else array
    except (TypeError, ValueError, OverflowError):  # lists of different lengths, or words
        return np.asarray(None)


def polygon_defect(polygon: Any, limit: float = math.inf) -> str | None:
    """Return why a polygon [x0, y0, x1, y1, ...] encloses nothing; None if it encloses an area.

    Args:
        polygon: the coordinates.
        limit: maximum length of the outline and of each coordinate, in pixels.

    Raises:
        Refusal: the polygon is not a list of numbers, or exceeds the limit.
    """
    points = _array(polygon)
    if points.dtype.kind not in "iuf" or points.ndim != 1:
        allowed = "a list of numbers [x0, y0, x1, y1, ...]"
        raise Refusal(_OTHER_FORM, f"a polygon must be {allowed}, it is {shown(polygon)}")
    if points.size < 6:
        return "under 3 points"
    if points.size % 2:
        return "an odd number of coordinates"
    points = points.astype(np.float64)
    farthest = np.abs(points).max()
    if not np.isfinite(farthest):
        return "NaN or infinite coordinates"
    if farthest > limit:
        reason = f"a polygon reaches to {farthest:.0f} pixels, far outside the image"
        raise Refusal("polygon far outside the image", reason)
    if points.size * farthest > limit:  # no line is longer than twice the largest coordinate
        corners = points.reshape(-1, 2)
        outline = float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
        if outline > limit:
            reason = f"a polygon of {len(corners)} points has an outline of {outline:.0f} pixels"
            raise Refusal("polygon with an endless outline", reason)
    return None if _encloses_area(points) else "no area"


def _encloses_area(points: NDArray[np.float64]) -> bool:
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
        raise Refusal("RLE incomplete", "the RLE lacks 'size' or 'counts'")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        reason = f"the RLE's 'size' is {shown(size)}, the image has {height} x {width} pixels"
        raise Refusal("RLE of another size", reason)
    runs = _runs(counts)
    # Check each run first, so that the sum cannot overflow.
    pixels = height * width
    if runs.ndim != 1 or (runs < 0).any() or (runs > pixels).any() or int(runs.sum()) != pixels:
        covered = runs.sum(dtype=np.float64)
        reason = f"the RLE's 'counts' cover {covered:.0f} pixels, the image has {pixels}"
        raise Refusal("RLE of another size", reason)
    if int(runs[1::2].sum()) == 0:
        return None
    if isinstance(counts, list):
        plain = {"size": [height, width], "counts": runs.tolist()}
        return dict(coco_mask.frPyObjects(plain, height, width))
    return {"size": [height, width], "counts": counts}


def _runs(counts: Any) -> NDArray[np.int64]:
    """Return the run lengths of a compressed or uncompressed RLE."""
    if isinstance(counts, (str, bytes)):
        return decode_counts(counts)
    runs = _array(counts or np.zeros(0, np.int64)) if isinstance(counts, list) else _array(None)
    # For example 300.0 or "300".
    if runs.dtype.kind == "f" and (np.abs(runs) < _MOST_EXACT).all() and (runs % 1 == 0).all():
        runs = runs.astype(np.int64)
    if runs.dtype.kind not in "iu":
        reason = f"the RLE's 'counts' must be a text or whole numbers, they are {shown(counts)}"
        raise Refusal(_DAMAGED, reason)
    return runs


def decode_counts(counts: str | bytes) -> NDArray[np.int64]:
    """Decode and check the run lengths of a compressed RLE; pycocotools does not check them.

    A character (from "0" on) holds five bits and a continuation bit; the last of a run has a sign
    bit. From the fourth run on, the difference to the run before the previous one is stored.

    Returns:
        (R,) int64, alternating runs of 0 and 1, starting with 0; column by column.

    Raises:
        Refusal: the string is not a compressed RLE.
    """
    data = counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    last = (codes & 0x20) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if (codes < 0).any() or (codes > 63).any() or not last[-1] or int(lengths.max()) > 7:
        raise Refusal(_DAMAGED, "the RLE's 'counts' are damaged")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    runs -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def has_plain_numbers(segmentation: Any) -> bool:
    """Return whether evaluators can read the numbers of a usable segmentation."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return not isinstance(counts, list) or set(map(type, counts)) == {int}
    return not any(str in set(map(type, polygon)) for polygon in segmentation)


def segmentation_box(segmentation: Any) -> list[float]:
    """Return the box of a clean segmentation: [x, y, width, height] in pixels."""
    if isinstance(segmentation, dict):
        return [float(value) for value in coco_mask.toBbox(segmentation)]
    points = np.concatenate([np.asarray(polygon, np.float64) for polygon in segmentation])
    corners = points.reshape(-1, 2)
    return [*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).tolist()]


def lies_outside(polygons: list[Any], height: int, width: int) -> bool:
    """Return whether clean polygons are outside of an image, given its size in pixels."""
    x, y = polygons[0][:2]
    if 0 < x < width and 0 < y < height:  # the usual case, without a box
        return False
    x, y, across, down = segmentation_box(polygons)
    return bool(x >= width or y >= height or x + across <= 0 or y + down <= 0)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that fits a float."""
    try:
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        return numeric and math.isfinite(value)
    except OverflowError:
        return False


def is_box(box: Any) -> bool:
    """Return whether a value is [x, y, width, height] of finite numbers with a positive size."""
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(is_number(value) for value in box)
        and box[2] > 0
        and box[3] > 0
    )
