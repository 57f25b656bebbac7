"""COCO's run-length encoding of binary masks, byte for byte that of pycocotools.

Runs are column-major and alternate between 0 and 1, starting with 0. Changes of value are found on
the masks' device, so that little more than the runs is copied to the host.

Shape letters: N masks, H W rows and columns, R runs of all masks.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_d2.ops.mask_crops import MaskCrops
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.threads import one_thread

# Pixels searched at once on a GPU, more than 100 masks of 1280x1333.
PART_PIXELS = 1 << 28


def encode_masks(masks: Tensor | MaskCrops) -> list[dict[str, Any]]:
    """Encode masks as `pycocotools.mask.encode` does.

    Args:
        masks: (N, H, W) bool, on any device, contiguous or not.

    Returns:
        For each mask {"size": [H, W], "counts": bytes}.
    """
    from pycocotools import mask as coco_mask  # `run_lengths` works without

    size = list(masks.shape[1:])
    runs, num_runs = run_lengths(masks)
    parts = np.split(runs.astype(np.uint32), np.cumsum(num_runs))[:-1]
    codes = [{"size": size, "counts": part} for part in parts]
    return coco_mask.frPyObjects(codes, *size) if codes else []


def run_lengths(masks: Tensor | MaskCrops) -> tuple[np.ndarray, np.ndarray]:
    """Compute the run lengths of masks.

    On a GPU all masks are searched at once, with two synchronizations; on a CPU each mask is
    searched in its box only.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (R,) int64 lengths of the runs of all masks, starting with the zeros of each mask (maybe 0);
        and (N,) int64, the number of runs of each mask, at least 1.
    """
    num, num_pixels = len(masks), masks.shape[1] * masks.shape[2]
    if num * num_pixels == 0:
        changes = np.zeros(0, dtype=np.int64)
    elif isinstance(masks, MaskCrops) or masks.device.type == "cpu":
        changes = _changes_in_boxes(masks)
    else:
        changes = _changes_at_once(masks).cpu().numpy()
    mask, place = np.divmod(changes, max(1, num_pixels))
    num_runs = np.bincount(mask, minlength=num) + 1
    stops = np.full(len(mask) + num, num_pixels, dtype=np.int64)
    stops[np.arange(len(mask)) + mask] = place
    starts = np.roll(stops, 1)
    starts[np.cumsum(num_runs) - num_runs] = 0
    return stops - starts, num_runs


def _changes_at_once(masks: Tensor) -> Tensor:
    """Find the pixels that differ from their predecessor in column-major order; int64, ascending.

    The index of a pixel of mask n is n * H * W + column * H + row. The predecessor of the first
    pixel is 0.
    """
    num, height, width = masks.shape
    found = []
    part = max(1, PART_PIXELS // (height * width))
    for start in range(0, num, part):
        pixels = masks[start : start + part].view(torch.uint8)
        edges = torch.empty_like(pixels, memory_format=torch.contiguous_format)
        torch.bitwise_xor(pixels[:, 1:], pixels[:, :-1], out=edges[:, 1:])
        torch.bitwise_xor(pixels[:, 0, 1:], pixels[:, -1, :-1], out=edges[:, 0, 1:])
        edges[:, 0, 0] = pixels[:, 0, 0]
        place = edges.flatten().nonzero()[:, 0]  # synchronizes
        row, column = place // width % height, place % width
        by_column = place + row * (1 - width) + column * (height - 1)
        found.append(by_column + start * height * width)
    return torch.cat(found).sort().values


def _changes_in_boxes(masks: Tensor | MaskCrops) -> np.ndarray:
    """Find the same within the box of each mask."""
    num, height, width = masks.shape
    found = [torch.zeros(0, dtype=torch.int64, device=masks.device)]
    with one_thread():
        if isinstance(masks, MaskCrops):
            windows, parts = masks.windows, masks.parts()
        else:
            windows, parts = mask_boxes(masks).long().tolist(), None
        for mask, (left, top, right, bottom) in enumerate(windows):
            if right == 0:
                continue
            part = masks[mask, top:bottom, left:right] if parts is None else parts[mask]
            pixels = part.view(torch.uint8)
            edges = pixels.new_zeros(bottom - top + 1, right - left)
            edges[:-1] = pixels
            edges[1:] ^= pixels
            row, column = edges.nonzero(as_tuple=True)
            # Indices leave one more position per mask, for runs that end with the mask.
            first = mask * (height * width + 1) + left * height + top
            found.append(row.add_(column, alpha=height).add_(first))
    changes = np.sort(torch.cat(found).cpu().numpy())
    if len(changes):
        # A run that ends with a column continues in the next one.
        equal = np.flatnonzero(changes[1:] == changes[:-1])
        changes = np.delete(changes, np.concatenate([equal, equal + 1]))
    index, place = np.divmod(changes, height * width + 1)
    return (changes - index)[place < height * width]
