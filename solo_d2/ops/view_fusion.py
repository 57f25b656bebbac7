"""Merge instances found in several views of an image, at mask and score level.

Shape letters: M instances of a view, G merged instances, C channels, H W rows and columns, H' W'
those of the common frame.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.mask_iou import match_pairs, pairwise_mask_iou

# Minimum IoU to merge instances of two views: the lowest IoU threshold of COCO.
SAME_INSTANCE_IOU = 0.5


def to_frame(
    maps: Tensor,
    stride: int,
    *,
    image_size: tuple[int, int],
    frame_size: tuple[int, int],
    flipped: bool,
) -> Tensor:
    """Resample maps of a view bilinearly to a frame that covers exactly the image.

    Args:
        maps: (C, H, W) float32 over the padded input of the view.
        stride: stride of the maps in input pixels.
        image_size: height and width of the image, at the upper left of the input.
        frame_size: H' and W'.
        flipped: whether the view is flipped horizontally.

    Returns:
        (C, H', W') float32.
    """
    rows, columns = (
        part / stride / whole for part, whole in zip(image_size, maps.shape[1:], strict=True)
    )
    # From [-1, 1] over the frame to [-1, 1] over the maps, whose first part is the image.
    to_maps = [[-columns if flipped else columns, 0.0, columns - 1], [0.0, rows, rows - 1]]
    theta = torch.tensor([to_maps], device=maps.device)
    grid = F.affine_grid(theta, [1, 1, *frame_size], align_corners=False)
    return F.grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0]


class ViewFusion:
    """Merge instances view by view; memory does not grow with the number of views.

    An instance of a view is merged into an instance of its class that it overlaps, at most one per
    view, highest scores first. (Matching by overlap would often select another view's duplicate of
    the object, which NMS leaves with a low score.) Masks are averaged with the scores as weights.
    The score is the mean over all views, 0 for a view without the instance, so averaging suppresses
    detections that only a few views find.
    """

    def __init__(self, frame_size: tuple[int, int], *, mask_thresh: float, device: torch.device):
        """Start without instances.

        Args:
            frame_size: H' and W' of all masks.
            mask_thresh: a pixel belongs to a mask above this probability.
            device: device of the masks.
        """
        self.mask_thresh = mask_thresh
        self.num_views = 0
        self.classes = torch.zeros(0, dtype=torch.int64, device=device)
        self.score_sums = torch.zeros(0, device=device)
        self.mask_sums = torch.zeros(0, *frame_size, device=device)  # weighted by scores

    def add(self, scores: Tensor, classes: Tensor, masks: Tensor) -> None:
        """Merge the instances of another view.

        Args:
            scores: (M,) float32, above 0.
            classes: (M,) int64.
            masks: (M, H', W') float32 probabilities; changed in place.
        """
        self.num_views += 1
        overlap = pairwise_mask_iou(self._masks() > self.mask_thresh, masks > self.mask_thresh)
        same = (overlap >= SAME_INSTANCE_IOU) & (self.classes[:, None] == classes[None, :])
        rank = same * (self.score_sums[:, None] * scores[None, :])
        pairs = match_pairs(rank, torch.finfo(torch.float32).tiny)
        index = torch.tensor(pairs, dtype=torch.int64, device=scores.device).view(-1, 2)
        merged, own = index[:, 0], index[:, 1]
        masks *= scores[:, None, None]
        self.score_sums.index_add_(0, merged, scores[own])
        self.mask_sums.index_add_(0, merged, masks[own])
        new = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        new[own] = False
        self.classes = torch.cat([self.classes, classes[new]])
        self.score_sums = torch.cat([self.score_sums, scores[new]])
        self.mask_sums = torch.cat([self.mask_sums, masks[new]])

    def result(self, *, keep_thresh: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the merged instances, best first.

        Args:
            keep_thresh: minimum score, inclusive.
            most: maximum number of instances.

        Returns:
            Scores (G,) float32, classes (G,) int64 and masks (G, H', W') float32 probabilities.
        """
        scores = self.score_sums / max(1, self.num_views)
        index = scores.argsort(descending=True, stable=True)[:most]
        index = index[scores[index] >= keep_thresh]
        return scores[index], self.classes[index], self._masks()[index]

    def _masks(self) -> Tensor:
        return self.mask_sums / self.score_sums[:, None, None]
