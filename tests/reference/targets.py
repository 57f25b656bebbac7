"""Target assignment of one image in slow loops, written from facts about the published code."""

import cv2
import numpy as np
import torch
from torch.nn import functional

F32 = np.float32


def cell_of(coordinate, size, side):
    """Floor division in float32, as Python divides."""
    return int(np.floor_divide(F32(coordinate) / F32(size), F32(1.0 / side)))


def assign(boxes, classes, masks, padded_size, num_grids, scale_ranges, sigma, num_classes):
    """For each level the class map (S, S) and the list of (cell, instance) samples."""
    height, width = padded_size
    result = []
    for side, (low, high) in zip(num_grids, scale_ranges, strict=True):
        class_map = np.full((side, side), num_classes)
        samples = []
        for n, (box, label, mask) in enumerate(zip(boxes, classes, masks, strict=True)):
            w, h = box[2] - box[0], box[3] - box[1]
            if not low <= np.sqrt(F32(w) * F32(h)) <= high or not mask.any():
                continue
            ys, xs = np.nonzero(mask)
            cy, cx = F32(ys.mean()), F32(xs.mean())
            half_h, half_w = F32(0.5) * h * F32(sigma), F32(0.5) * w * F32(sigma)
            row, column = cell_of(cy, height, side), cell_of(cx, width, side)
            top = max(0, cell_of(cy - half_h, height, side), row - 1)
            bottom = min(side - 1, cell_of(cy + half_h, height, side), row + 1)
            left = max(0, cell_of(cx - half_w, width, side), column - 1)
            right = min(side - 1, cell_of(cx + half_w, width, side), column + 1)
            for i in range(top, bottom + 1):
                for j in range(left, right + 1):
                    class_map[i, j] = label
                    samples.append((i * side + j, n))
        result.append((class_map, samples))
    return result


def downsample_as_published(masks, padded_size, stride=4):
    """The masks (N, H, W) of an image as AdelaiDet downsamples them: alone, by OpenCV's rule."""
    size = [int(side / stride + 0.5) for side in masks.shape[1:]]
    small = [cv2.resize(mask, size[::-1]) for mask in masks.numpy().astype(np.uint8)]
    small = torch.from_numpy(np.stack(small)).bool()
    height, width = (side // stride for side in padded_size)
    return functional.pad(small, (0, width - size[1], 0, height - size[0]))
