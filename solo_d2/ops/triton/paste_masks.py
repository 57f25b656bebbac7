"""Both resizes of soft masks, crop, threshold and boxes, in one pass that writes bool.

    out[m, y, x] = resize(crop(upsample(probs[m])))[y, x] > thresh

Bilinear with align_corners=False in both steps: sample i of n_new reads position
max((i + 0.5) * n_old / n_new - 0.5, 0) between its two neighbors.
Shape letters: M masks, H W rows and columns of the soft masks, H' W' of the output.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_d2.ops.triton.launch import launch

# Rows and columns of output pixels of one program, and mask pixels of one step of the scan.
BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_SCAN = 16, 64, 8192


@triton.jit(
    do_not_specialize=["width", "num_pixels", "out_height", "out_width"],
    do_not_specialize_on_alignment=["probs"],
)
def _span_kernel(
    probs, spans, boxes, width, num_pixels, out_height, out_width, thresh, BLOCK: tl.constexpr
):
    """Find where soft mask i exceeds the threshold, and initialize its box; one program per mask.

    `spans` (M, 4) int32 are the rows [0, 1) and columns [2, 3), empty if there is no pixel.
    """
    mask = tl.program_id(0)
    base = probs + mask.to(tl.int64) * num_pixels
    top, left = tl.full([BLOCK], 1 << 30, tl.int32), tl.full([BLOCK], 1 << 30, tl.int32)
    bottom, right = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        is_set = tl.load(base + pixel, mask=pixel < num_pixels, other=float("-inf")) > thresh
        y, x = pixel // width, pixel % width
        top = tl.where(is_set, tl.minimum(top, y), top)
        left = tl.where(is_set, tl.minimum(left, x), left)
        bottom = tl.where(is_set, tl.maximum(bottom, y + 1), bottom)
        right = tl.where(is_set, tl.maximum(right, x + 1), right)
    tl.store(spans + mask * 4, tl.min(top, axis=0))
    tl.store(spans + mask * 4 + 1, tl.max(bottom, axis=0))
    tl.store(spans + mask * 4 + 2, tl.min(left, axis=0))
    tl.store(spans + mask * 4 + 3, tl.max(right, axis=0))
    tl.store(boxes + mask * 4, out_width.to(tl.float32))
    tl.store(boxes + mask * 4 + 1, out_height.to(tl.float32))
    tl.store(boxes + mask * 4 + 2, 0.0)
    tl.store(boxes + mask * 4 + 3, 0.0)


@triton.jit
def _neighbours(index, scale, size):
    """The two neighbors of a resized sample, and the weight of the second."""
    position = tl.maximum((index + 0.5) * scale - 0.5, 0.0)
    first = position.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), position - first


@triton.jit
def _enlarged(probs, rows, columns, scale, height, width):
    """Pixels (rows, columns) of the upsampled mask."""
    y0, y1, fy = _neighbours(rows, scale, height)
    x0, x1, fx = _neighbours(columns, scale, width)
    upper, lower = probs + y0[:, None] * width, probs + y1[:, None] * width
    fy, fx, x0, x1 = fy[:, None], fx[None, :], x0[None, :], x1[None, :]
    top = tl.load(upper + x0) * (1 - fx) + tl.load(upper + x1) * fx
    bottom = tl.load(lower + x0) * (1 - fx) + tl.load(lower + x1) * fx
    return top * (1 - fy) + bottom * fy


@triton.jit
def _reached(block, last, scale, image_size, old_scale, size, start, stop, RESIZES: tl.constexpr):
    """Whether output pixels block..last depend on a mask pixel in [start, stop)."""
    if RESIZES:
        block, _, _ = _neighbours(block, scale, image_size)
        _, last, _ = _neighbours(last, scale, image_size)
    first, _, _ = _neighbours(block, old_scale, size)
    _, final, _ = _neighbours(last, old_scale, size)
    return (first < stop) & (final >= start)


@triton.jit
def _edge(value):
    """The float32 bits of a pixel count; for values >= 0 the bits have the same order."""
    return value.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit(
    do_not_specialize=["height", "width", "image_height", "image_width", "out_height", "out_width"],
    do_not_specialize_on_alignment=["probs", "out"],
)
def _paste_kernel(
    probs, spans, out, boxes, height, width, image_height, image_width, out_height, out_width,
    old_scale, row_scale, column_scale, thresh,
    RESIZES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (b, m) computes the b-th block of mask m, or writes zeros if m has no pixel near it.

    `spans` and `boxes` are those of `_span_kernel`; the box, XYXY, is extended by the pixels of the
    block. `boxes` are float32 bits, which have the same order as int32.
    """
    mask = tl.program_id(1)
    across = tl.cdiv(out_width, BLOCK_COLUMNS)
    top = tl.program_id(0) // across * BLOCK_ROWS
    left = tl.program_id(0) % across * BLOCK_COLUMNS
    y, x = top + tl.arange(0, BLOCK_ROWS), left + tl.arange(0, BLOCK_COLUMNS)
    inside = (y < out_height)[:, None] & (x < out_width)[None, :]
    where = (mask.to(tl.int64) * out_height + y[:, None]) * out_width + x[None, :]
    last_y = tl.minimum(top + BLOCK_ROWS, out_height) - 1
    last_x = tl.minimum(left + BLOCK_COLUMNS, out_width) - 1
    span = spans + mask * 4
    is_near = _reached(
        top, last_y, row_scale, image_height, old_scale, height,
        tl.load(span), tl.load(span + 1), RESIZES,
    ) & _reached(
        left, last_x, column_scale, image_width, old_scale, width,
        tl.load(span + 2), tl.load(span + 3), RESIZES,
    )  # fmt: skip
    if is_near:
        base = probs + mask.to(tl.int64) * height * width
        # Beyond the edge the last pixel is recomputed, but not stored.
        ys, xs = tl.minimum(y, last_y), tl.minimum(x, last_x)
        if RESIZES:
            y0, y1, fy = _neighbours(ys, row_scale, image_height)
            x0, x1, fx = _neighbours(xs, column_scale, image_width)
            fy, fx = fy[:, None], fx[None, :]
            upper = _enlarged(base, y0, x0, old_scale, height, width) * (1 - fx)
            upper += _enlarged(base, y0, x1, old_scale, height, width) * fx
            lower = _enlarged(base, y1, x0, old_scale, height, width) * (1 - fx)
            lower += _enlarged(base, y1, x1, old_scale, height, width) * fx
            value = upper * (1 - fy) + lower * fy
        else:
            value = _enlarged(base, ys, xs, old_scale, height, width)
        is_set = (value > thresh) & inside
        tl.store(out + where, is_set.to(tl.uint8), mask=inside)
        if tl.max(is_set.to(tl.int32)) > 0:
            rows, columns = tl.max(is_set.to(tl.int32), axis=1), tl.max(is_set.to(tl.int32), axis=0)
            box = boxes + mask * 4
            tl.atomic_min(box, _edge(tl.min(tl.where(columns > 0, x, out_width))))
            tl.atomic_min(box + 1, _edge(tl.min(tl.where(rows > 0, y, out_height))))
            tl.atomic_max(box + 2, _edge(tl.max(tl.where(columns > 0, x + 1, 0))))
            tl.atomic_max(box + 3, _edge(tl.max(tl.where(rows > 0, y + 1, 0))))
    else:
        tl.store(out + where, tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.uint8), mask=inside)


def paste_masks_triton(
    mask_probs: Tensor, stride: int, image_size: tuple[int, int], thresh: float, out: Tensor
) -> Tensor:
    """Launch the kernel.

    Args:
        mask_probs: (M, H, W) float32, not empty.
        stride: stride of the masks in input pixels.
        image_size: height and width of the image in the padded input.
        thresh: a pixel is set above this probability.
        out: (M, H', W') bool, contiguous and not empty; overwritten.

    Returns:
        (M, 4) float32 boxes, zeros for an empty mask.
    """
    mask_probs = mask_probs.contiguous()
    num, height, width = mask_probs.shape
    out_height, out_width = out.shape[1:]
    boxes = mask_probs.new_empty(num, 4)
    spans = torch.empty_like(boxes, dtype=torch.int32)
    launch(
        _span_kernel, (num,),
        mask_probs, spans, boxes, width, height * width, out_height, out_width, float(thresh),
        BLOCK=BLOCK_SCAN, num_warps=16,
    )  # fmt: skip
    blocks = triton.cdiv(out_height, BLOCK_ROWS) * triton.cdiv(out_width, BLOCK_COLUMNS)
    launch(
        _paste_kernel, (blocks, num),
        mask_probs, spans, out.view(torch.uint8), boxes.view(torch.int32),
        height, width, *image_size, out_height, out_width,
        1 / stride, image_size[0] / out_height, image_size[1] / out_width, float(thresh),
        RESIZES=(out_height, out_width) != tuple(image_size),
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS, num_warps=8,
    )  # fmt: skip
    return boxes.mul_(boxes[:, 2:3] > 0)
