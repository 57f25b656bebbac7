"""Product of kernels and feature, thresholded in registers (SOLOv2, section 2.1).

    p[m, q] = sigmoid(sum_e kernels[m, e] * feature[e, q])

The M x P float matrix p is never written; see solo_d2/ops/triton/binary_masks.py for the outputs.
Shape letters: M masks, E channels, P pixels, J blocks of pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.backends import allows_tf32
from solo_d2.ops.triton.binary_masks import BLOCK_PIXELS, WORD, new_masks, store_masks
from solo_d2.ops.triton.launch import launch

# By bytes per element: masks of one program, and channels of one step.
BLOCK_MASKS = {4: 128, 2: 64}
BLOCK_CHANNELS = {4: 16, 2: 64}


@triton.jit(do_not_specialize=["num_masks", "row_words", "num_pixels"])
def _dynamic_masks_kernel(
    kernels, feature, masks, areas, soft_sums,
    num_masks, num_channels, row_words, num_pixels, thresh,
    PRECISION: tl.constexpr, WORD: tl.constexpr, BLOCK_MASKS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (i, j) computes the i-th block of masks in the j-th block of pixels.

    Neighboring programs share the block of the feature.
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
    probs = tl.where(pixel[None, :] < num_pixels, tl.sigmoid(logits), 0.0)
    store_masks(
        probs, row, pixel, masks, areas, soft_sums, num_masks, size, num_pixels, thresh
    )  # fmt: skip


def dynamic_masks_triton(
    kernels: Tensor, feature: Tensor, thresh: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel.

    float32 factors are split into two TF32 numbers each, and three of the four products are summed,
    which is as exact as float32 and runs on tensor cores. If torch may use TF32, a single product
    is used. Half precision is multiplied directly. Sums are float32.

    Args:
        kernels: (M, E) float32, float16 or bfloat16.
        feature: (E, H, W), likewise.
        thresh: a pixel is set above this probability.

    Returns:
        (M, H, W) bool, areas (M, J) int32, soft sums (M, J) float32.
    """
    num_masks, (num_channels, height, width) = len(kernels), feature.shape
    num_pixels = height * width
    dtype = torch.promote_types(kernels.dtype, feature.dtype)
    if dtype == torch.float64:
        dtype = torch.float32
    kernels, feature = kernels.to(dtype).contiguous(), feature.to(dtype).flatten(1).contiguous()
    if num_pixels % WORD:
        feature = F.pad(feature, (0, -num_pixels % WORD))
    masks, areas, soft_sums = new_masks(num_masks, num_pixels, feature.device)
    block_masks = BLOCK_MASKS[dtype.itemsize]
    if masks.numel():
        launch(
            _dynamic_masks_kernel, (triton.cdiv(num_masks, block_masks), areas.shape[1]),
            kernels, feature, masks.view(torch.uint8), areas, soft_sums,
            num_masks, num_channels, feature.shape[1] // WORD, num_pixels, float(thresh),
            PRECISION="tf32" if allows_tf32() else "tf32x3", WORD=WORD, BLOCK_MASKS=block_masks,
            BLOCK_PIXELS=BLOCK_PIXELS, BLOCK_CHANNELS=BLOCK_CHANNELS[dtype.itemsize], num_warps=8,
        )  # fmt: skip
    masks = masks[:, :num_pixels].unflatten(1, (height, width))
    return masks, areas, soft_sums
