"""Masks of targets as the published code makes them.

The slow loops of the assignment are those of tools/benchmarks/plain_training.py.
"""

import cv2
import numpy as np
import torch
from torch.nn import functional


def downsample_as_published(masks, padded_size, stride=4):
    """The masks (N, H, W) of an image as AdelaiDet downsamples them: alone, by OpenCV's rule."""
    size = [int(side / stride + 0.5) for side in masks.shape[1:]]
    small = [cv2.resize(mask, size[::-1]) for mask in masks.numpy().astype(np.uint8)]
    small = torch.from_numpy(np.stack(small)).bool()
    height, width = (side // stride for side in padded_size)
    return functional.pad(small, (0, width - size[1], 0, height - size[0]))
