"""Track instances across frames by mask overlap, so that their colours stay the same.

SOLO predicts neither boxes nor embeddings to track.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from solo_d2.ops.mask_crops import MaskCrops
from solo_d2.ops.mask_iou import match_pairs, pairwise_mask_iou

# Longest side of the masks that are compared; larger ones are thinned out.
_SIDE = 480


@dataclass(frozen=True)
class _Track:
    """An instance that was seen.

    Attributes:
        number: its own, from 0.
        mask: (H, W) bool where it was last, thinned out.
        class_index: what it was last.
        missed: frames since then.
    """

    number: int
    mask: Tensor
    class_index: int
    missed: int = 0


class MaskTracker:
    """Numbers instances through a video.

    Attributes:
        least_iou: overlap from which on masks of two frames may be one instance.
        other_class: factor on the overlap of masks of different classes, whose class may have been
            mistaken in one of the frames.
        memory: frames that an instance may be missing for.
    """

    def __init__(self, *, least_iou: float = 0.25, other_class: float = 0.5, memory: int = 15):
        self.least_iou, self.other_class, self.memory = least_iou, other_class, memory
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, masks: Tensor | MaskCrops, classes: Tensor) -> list[int]:
        """Number the instances of the next frame.

        Args:
            masks: (N, H, W) bool, on any device. If the size differs from the last frame's, nothing
                of before is known again.
            classes: (N,) int64.

        Returns:
            N different numbers; the same as before for an instance that is known.
        """
        step = max(1, -(-max(masks.shape[1:]) // _SIDE))
        if isinstance(masks, MaskCrops):
            small = masks.whole(step)
        else:
            small = masks[:, ::step, ::step].contiguous()
        labels = classes.tolist()
        if self._tracks and self._tracks[0].mask.shape != small.shape[1:]:
            self._tracks = []
        pairs = dict(self._match(small, classes))  # track -> instance
        found = {instance: self._tracks[track].number for track, instance in pairs.items()}
        numbers = []
        for instance in range(len(labels)):
            if instance not in found:
                found[instance], self._next = self._next, self._next + 1
            numbers.append(found[instance])
        lost = [
            replace(track, missed=track.missed + 1)
            for index, track in enumerate(self._tracks)
            if index not in pairs and track.missed < self.memory
        ]
        seen = [_Track(*values) for values in zip(numbers, small, labels, strict=True)]
        self._tracks = seen + lost
        return numbers

    def _match(self, masks: Tensor, classes: Tensor) -> list[tuple[int, int]]:
        if not self._tracks or not len(masks):
            return []
        known = torch.stack([track.mask for track in self._tracks])
        known_classes = torch.tensor([t.class_index for t in self._tracks], device=classes.device)
        same = (known_classes[:, None] == classes).float()
        factor = same + (1 - same) * self.other_class
        return match_pairs(pairwise_mask_iou(known, masks) * factor, self.least_iou)
