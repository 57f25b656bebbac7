"""Pre- and postprocessing of exported models in NumPy: Detectron2's resizing, masks, boxes.

N instances of an image, H W its rows and columns, h w those of soft masks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Fractional bits of Pillow's weights for 8-bit images.
WEIGHT_BITS = 22


def input_size(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """Compute height and width after Detectron2's ResizeShortestEdge.

    Args:
        size: height and width of the image.
        min_size: length of the short side; 0 for no resizing.
        max_size: limit of the long side.
    """
    if min_size == 0:
        return size
    scale = min_size / min(size)
    # In Detectron2's order of rounding.
    height, width = (min_size if side == min(size) else scale * side for side in size)
    if max(height, width) > max_size:
        scale = max_size / max(height, width)
        height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image (H, W, C) uint8 to (H', W') like Pillow's bilinear filter.

    Unlike OpenCV's, the filter gets wider for downsampling. Columns are resized first, then rows,
    with rounding in between; Pillow 13 sometimes starts with rows, and then differs by 1.
    """
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            image = _resize_axis(image, axis, size[axis])
    return image


def _resize_axis(image: NDArray[np.uint8], axis: int, size: int) -> NDArray[np.uint8]:
    scale = image.shape[axis] / size
    reach = max(scale, 1.0)  # half the width of the triangle
    centers = (np.arange(size) + 0.5) * scale
    first = np.maximum(np.trunc(centers - reach + 0.5), 0).astype(np.int64)
    stop = np.minimum(np.trunc(centers + reach + 0.5), image.shape[axis]).astype(np.int64)
    pixels = first[:, None] + np.arange((stop - first).max())
    weights = np.maximum(1 - np.abs(pixels - centers[:, None] + 0.5) / reach, 0)
    weights[pixels >= stop[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    weights = np.floor(weights * (1 << WEIGHT_BITS) + 0.5).astype(np.int32)
    pixels = np.minimum(pixels, image.shape[axis] - 1)
    shape = [-1 if i == axis else 1 for i in range(3)]
    total = np.int32(1 << (WEIGHT_BITS - 1))  # rounds half up
    for pixel, weight in zip(pixels.T, weights.T, strict=True):
        total = total + image.take(pixel, axis=axis).astype(np.int32) * weight.reshape(shape)
    return (total >> WEIGHT_BITS).clip(0, 255).astype(np.uint8)


def sample_positions(side: int, output_side: int) -> NDArray[np.float32]:
    """Return the positions of output pixels along an axis of an image, (output_side,) float32."""
    pixels = np.arange(output_side, dtype=np.float32)
    if side != output_side:
        pixels = (pixels + np.float32(0.5)) * np.float32(side / output_side) - np.float32(0.5)
    return pixels.clip(0, side - 1)


def stack_positions(positions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Stack positions to (B, longest) float32, padded with -1, which is outside the image."""
    result = np.full((len(positions), max(map(len, positions))), -1, np.float32)
    for row, values in zip(result, positions, strict=True):
        row[: len(values)] = values
    return result


def paste_masks(
    probs: NDArray[np.float32],
    stride: int,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    thresh: float,
) -> NDArray[np.bool_]:
    """Resize soft masks to the output size: upsample, crop the padding, resize, threshold.

    Args:
        probs: (N, h, w) over the padded input.
        stride: stride of the masks in input pixels.
        image_size: height and width of the image in the padded input.
        output_size: height and width of the result.
        thresh: a pixel is set above this probability.

    Returns:
        (N, *output_size) bool.
    """
    masks = np.zeros((len(probs), *output_size), np.bool_)
    sides = zip(probs.shape[1:], image_size, output_size, strict=True)
    to_rows, to_columns = (
        axis_weights(sample_positions(side, output_side), side, size, stride)
        for size, side, output_side in sides
    )
    for mask, prob in zip(masks, probs, strict=True):
        # Only output pixels near a mask pixel above the threshold can be set.
        inside = prob > thresh
        y = np.flatnonzero(to_rows @ inside.any(axis=1))
        x = np.flatnonzero(to_columns @ inside.any(axis=0))
        if len(y) and len(x):
            part = slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)
            mask[part] = to_rows[part[0]] @ (prob @ to_columns[part[1]].T) > thresh
    return masks


def axis_weights(
    positions: NDArray[np.float32], side: int, size: int, stride: int
) -> NDArray[np.float32]:
    """Compute the weight of each of `size` mask pixels for each output pixel along an axis.

    Args:
        positions: (N,) positions in the image, see `sample_positions`.
        side: pixels of the image.
        size: mask pixels.
        stride: stride of the masks in input pixels.

    Returns:
        (N, size) float32.
    """
    first = np.floor(positions)
    fraction = (positions - first)[:, None]

    def enlarged(pixel: NDArray[np.float32]) -> NDArray[np.float32]:
        source = ((pixel + 0.5) / stride - 0.5).clip(0, size - 1)
        return np.maximum(1 - np.abs(source[:, None] - np.arange(size, dtype=np.float32)), 0)

    second = np.minimum(first + 1, side - 1)
    weights = (1 - fraction) * enlarged(first) + fraction * enlarged(second)
    return weights.astype(np.float32)


def mask_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Compute tight boxes (N, 4), XYXY, right and bottom edge exclusive; zeros for empty masks."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(y):
            box[:] = x[0], y[0], x[-1] + 1, y[-1] + 1
    return boxes
