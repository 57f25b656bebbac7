"""Kernels times feature, made binary while it is in registers (SOLOv2, section 2.1).

    p[m, q]         = sigmoid(sum_e kernels[m, e] * feature[e, q])
    masks[m, q]     = p[m, q] > thresh
    areas[j, m]     = number of q in block j with masks[m, q]
    soft_sums[j, m] = sum of p[m, q] over these q; NaN if any p[m, q] is

The M x P float matrix p is never written. Shape letters: M masks, E channels, P pixels, J blocks of
pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.backends import allows_tf32
from solo_d2.ops.triton.launch import launch

# Pixels of a program; by the bytes of a number, its masks and the channels of one of its steps.
BLOCK_PIXELS = 128
BLOCK_MASKS = {4: 128, 2: 64}
BLOCK_CHANNELS = {4: 16, 2: 64}
# Pixels that a thread loads or stores at once. Rows of the feature and of masks are filled up to
# whole words, and their length is passed in words, so that the compiler knows where they begin.
WORD = 16


@triton.jit(do_not_specialize=["num_masks", "row_words", "num_pixels"])
def _dynamic_masks_kernel(
    kernels, feature, masks, areas, soft_sums,
    num_masks, num_channels, row_words, num_pixels, thresh,
    PRECISION: tl.constexpr, WORD: tl.constexpr, BLOCK_MASKS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (i, j) makes the i-th block of masks in the j-th block of pixels.

    Neighbouring programs share the block of the feature. `areas` and `soft_sums` (J, M) are added
    up afterwards, so that the order is always the same.
    """
    row = tl.program_id(0) * BLOCK_MASKS + tl.arange(0, BLOCK_MASKS)
    pixel = tl.program_id(1) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    size = row_words * WORD
    is_mask, in_row = row < num_masks, pixel < size
    logits = tl.zeros([BLOCK_MASKS, BLOCK_PIXELS], tl.float32)
    for start in range(0, num_channels, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        in_channel = channel < num_channels
        weights = tl.load(
            kernels + row[:, None] * num_channels + channel[None, :],
            mask=is_mask[:, None] & in_channel[None, :],
            other=0.0,
        )
        values = tl.load(
            feature + channel[:, None].to(tl.int64) * size + pixel[None, :],
            mask=in_channel[:, None] & in_row[None, :],
            other=0.0,
        )
        logits = tl.dot(weights, values, logits, input_precision=PRECISION)
    in_image = pixel[None, :] < num_pixels
    probs = tl.where(in_image, tl.sigmoid(logits), 0.0)
    is_set = (probs > thresh) & in_image
    where = masks + row[:, None].to(tl.int64) * size + pixel[None, :]
    tl.store(where, is_set.to(tl.uint8), mask=is_mask[:, None] & in_row[None, :])
    block = tl.program_id(1).to(tl.int64) * num_masks + row
    # Old interpreters keep such sums in 64 bits, and store them all; compiled, this is no work.
    area = tl.sum(is_set.to(tl.int32), axis=1).to(tl.int64).to(tl.int32)
    tl.store(areas + block, area, mask=is_mask)
    # A product rather than a choice: one pixel of NaN makes the sum NaN.
    soft_sum = tl.sum(probs * is_set.to(tl.float32), axis=1)
    tl.store(soft_sums + block, soft_sum, mask=is_mask)


def dynamic_masks_triton(
    kernels: Tensor, feature: Tensor, thresh: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel.

    A factor of float32 is the sum of two TF32 numbers, and three of the four products of these are
    added up, which is as exact as a product of float32 and runs on tensor cores; one product does
    if torch is allowed TF32 for its own. Half precision is multiplied as it is. Sums are float32.

    Args:
        kernels: (M, E) float32, float16 or bfloat16.
        feature: (E, H, W), likewise.
        thresh: a pixel is set above this probability.

    Returns:
        (M, H, W) bool, areas (J, M) int32, soft sums (J, M) float32.
    """
    num_masks, (num_channels, height, width) = len(kernels), feature.shape
    num_pixels = height * width
    dtype = torch.promote_types(kernels.dtype, feature.dtype)
    if dtype == torch.float64:
        dtype = torch.float32
    kernels, feature = kernels.to(dtype).contiguous(), feature.to(dtype).flatten(1).contiguous()
    if num_pixels % WORD:
        feature = F.pad(feature, (0, -num_pixels % WORD))
    masks = torch.empty(num_masks, feature.shape[1], dtype=torch.bool, device=feature.device)
    blocks, block_masks = triton.cdiv(num_pixels, BLOCK_PIXELS), BLOCK_MASKS[dtype.itemsize]
    areas = torch.empty(blocks, num_masks, dtype=torch.int32, device=feature.device)
    soft_sums = torch.empty(blocks, num_masks, device=feature.device)
    if masks.numel():
        launch(
            _dynamic_masks_kernel, (triton.cdiv(num_masks, block_masks), blocks),
            kernels, feature, masks.view(torch.uint8), areas, soft_sums,
            num_masks, num_channels, feature.shape[1] // WORD, num_pixels, float(thresh),
            PRECISION="tf32" if allows_tf32() else "tf32x3", WORD=WORD, BLOCK_MASKS=block_masks,
            BLOCK_PIXELS=BLOCK_PIXELS, BLOCK_CHANNELS=BLOCK_CHANNELS[dtype.itemsize], num_warps=8,
        )  # fmt: skip
    masks = masks[:, :num_pixels].unflatten(1, (height, width))
    return masks, areas, soft_sums
