"""Contours of masks, and the regions enclosed by contours (SOLO, arXiv:1912.04488, section 6).

Shape letters: N and M masks, H and W rows and columns.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Value to fill a contour with, by its depth modulo 4; see `_fill`. At other depths the surroundings
# already have the right value.
_FILLED = {0: 1, 3: 0}


def contour_masks(masks: Tensor) -> Tensor:
    """Find the contours of masks and of their holes: pixels with a 4-neighbor outside the mask.

    The result contains the points of all contours of OpenCV's findContours (RETR_LIST,
    CHAIN_APPROX_NONE). Pixels outside the image are outside the mask.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W) bool, a subset of each mask, empty only for an empty mask.
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

    Soft contours are bands several pixels wide. A contour inside a region bounds a hole, and one
    inside a hole bounds another part. A contour with a gap encloses nothing and stays unchanged.

    Enclosed pixels get the mean probability of the contour. The region then has the maskness of
    the contour, and no edge along the inner side of the band when it is resized. The outer side of
    the band is the edge of the region.

    Args:
        probs: (M, H, W) float32 in [0, 1]. Synchronizes: regions are found on the host.
        thresh: a pixel belongs to a contour above this probability.

    Returns:
        (M, H, W) float32; pixels that are not enclosed keep their value.
    """
    contours = probs > thresh
    bands = contours.cpu().numpy().view(np.uint8)
    regions = torch.from_numpy(np.stack([_fill(b) for b in bands]) if len(bands) else bands)
    enclosed = regions.to(probs.device).bool() & ~contours
    mean = (probs * contours).sum(dim=(1, 2)) / contours.sum(dim=(1, 2)).clamp(min=1)
    # Rounding must not lower the mean to the threshold.
    least = torch.where(contours, probs, 1).amin(dim=(1, 2)) if probs.numel() else mean
    return torch.where(enclosed, torch.maximum(mean, least)[:, None, None], probs)


def _fill(band: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill the region enclosed by bands, (H, W) of 0 and 1; the bands belong to it.

    From the outside in, the depths of OpenCV's tree of contours are: 0 the outer side of a band; 1
    its inner side, where the region begins; 2 the outer side of a hole's band; 3 its inner side,
    where the hole begins; and so on.
    """
    import cv2  # only contour models need it

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
    # The outline of a hole lies on the band around it.
    return region | band
