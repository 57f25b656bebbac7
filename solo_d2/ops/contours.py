"""Contours of masks, and the regions that contours enclose (SOLO, arXiv:1912.04488, section 6).

Shape letters: N and M masks, H and W rows and columns.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What a contour becomes by its depth modulo 4, see `_fill`; at the depths between, what lies around
# is right already.
_FILLED = {0: 1, 3: 0}


def contour_masks(masks: Tensor) -> Tensor:
    """The contours of masks, of their holes too: pixels with a 4-neighbour outside of the mask.

    These are the points of all contours that OpenCV's findContours gives (RETR_LIST,
    CHAIN_APPROX_NONE). What lies outside of the image is outside of the mask.

    Args:
        masks: (N, H, W) bool, on any device.

    Returns:
        (N, H, W) bool, a part of each mask, without pixels only where that has none.
    """
    inner = masks.clone()
    for dim in (1, 2):
        length = masks.shape[dim]
        if length:
            inner.narrow(dim, 1, length - 1).logical_and_(masks.narrow(dim, 0, length - 1))
            inner.narrow(dim, 0, length - 1).logical_and_(masks.narrow(dim, 1, length - 1))
            inner.select(dim, 0).zero_()
            inner.select(dim, length - 1).zero_()
    return masks & ~inner


def fill_contours(probs: Tensor, thresh: float) -> Tensor:
    """Turn soft contours into the soft regions that they enclose.

    Soft contours are bands, some pixels wide. A contour inside a region is that of a hole, one
    inside a hole that of another part. A contour with a gap encloses nothing and stays as it is.

    The pixels that are enclosed get the mean probability of the contour's, so that the maskness
    of the region is that of the contour, and that the region has no edge along the inner side of
    the band when it is enlarged. The outer side of the band is the region's edge.

    Args:
        probs: (M, H, W) float32 in [0, 1]. Waits for the device: regions are found on the host.
        thresh: a contour has the pixels above this probability.

    Returns:
        (M, H, W) float32; what is not enclosed is as it was.
    """
    contours = probs > thresh
    bands = contours.cpu().numpy().view(np.uint8)
    regions = torch.from_numpy(np.stack([_fill(b) for b in bands]) if len(bands) else bands)
    enclosed = regions.to(probs.device).bool() & ~contours
    mean = (probs * contours).sum(dim=(1, 2)) / contours.sum(dim=(1, 2)).clamp(min=1)
    # Rounding must not bring it to the threshold.
    least = torch.where(contours, probs, 1).amin(dim=(1, 2)) if probs.numel() else mean
    return torch.where(enclosed, torch.maximum(mean, least)[:, None, None], probs)


def _fill(band: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The region that bands enclose, with the bands.

    Going inwards, the depths of OpenCV's tree of contours are: 0 the outer side of a band, 1 its
    inner side, where the region begins; 2 the outer side of a hole's band, 3 its inner side, where
    the hole begins; and so on.

    Args:
        band: (H, W) of 0 and 1.

    Returns:
        (H, W) of 0 and 1.
    """
    import cv2  # only models of contours need it

    region = np.zeros_like(band)
    outlines, tree = cv2.findContours(band, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return region
    parents = tree[0, :, 3]
    depth, level = 0, np.flatnonzero(parents < 0)
    while len(level):
        if depth % 4 in _FILLED:
            for index in level:
                cv2.drawContours(region, outlines, int(index), _FILLED[depth % 4], cv2.FILLED)
        depth, level = depth + 1, np.flatnonzero(np.isin(parents, level))
    # The outline of a hole runs along the band around it.
    return region | band
