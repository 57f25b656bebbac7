"""Comparison of the results of an exported model with those of the model.

N instances of an image, H W its rows and columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from solo_d2.export.onnx_model import detector_inputs, to_instances
from solo_d2.export.runner import Arrays, Detector
from solo_d2.ops.mask_iou import match_pairs, pairwise_mask_iou

# Minimum mask IoU to match instances of one class.
SAME_IOU = 0.5


@dataclass(frozen=True)
class Tolerance:
    """Limits of agreement.

    Attributes:
        score: maximum score difference of a pair.
        iou: minimum mask IoU of a pair.
        share: maximum fraction of instances found by one model only, and of pairs that exceed the
            limits above: in a mask with few pixels, one pixel at the threshold matters.
        ap: maximum difference of mask AP, in percent.
    """

    score: float
    iou: float
    share: float
    ap: float


# In float32 only the order of summation differs. In float16 probabilities have errors of up to a
# few thousandths, which change pixels at the border of masks and instances at thresholds.
TOLERANCES = {
    "float32": Tolerance(score=1e-3, iou=0.95, share=0.002, ap=0.1),
    "float16": Tolerance(score=0.05, iou=0.75, share=0.03, ap=0.3),
}


@dataclass
class Agreement:
    """Differences, accumulated over images."""

    tolerance: Tolerance
    images: int = 0
    expected: int = 0  # instances of the model
    found: int = 0  # instances of the export
    matched: int = 0  # matched pairs
    off: int = 0  # pairs that exceed the tolerance
    score_diff: float = 0.0  # maximum over pairs
    min_iou: float = 1.0  # minimum over pairs
    most_candidates: int = 0  # maximum over images

    def add(self, expected: Instances, found: Arrays, *, least_score: float = 0.0) -> None:
        """Add an image.

        Args:
            expected: results of the model, on the CPU.
            found: results of the export.
            least_score: unmatched instances below this score do not count, since they may be just
                above or below a limit.
        """
        masks = torch.from_numpy(np.ascontiguousarray(found["masks"]))
        classes, scores = torch.from_numpy(found["classes"]), torch.from_numpy(found["scores"])
        same_class = expected.pred_classes[:, None] == classes
        ious = _pairwise_iou(expected.pred_masks, masks) * same_class
        pairs = match_pairs(ious, SAME_IOU)
        rows, columns = [row for row, _ in pairs], [column for _, column in pairs]
        score_diffs = (expected.scores[rows] - scores[columns]).abs()
        differ = (score_diffs > self.tolerance.score) | (ious[rows, columns] < self.tolerance.iou)
        self.images += 1
        self.matched += len(rows)
        self.off += int(differ.sum())
        self.score_diff = max([self.score_diff, *score_diffs.tolist()])
        self.min_iou = min([self.min_iou, *ious[rows, columns].tolist()])
        self.expected += len(rows) + _count_unmatched(expected.scores, rows, least_score)
        self.found += len(rows) + _count_unmatched(scores, columns, least_score)
        self.most_candidates = max(self.most_candidates, int(found["num_candidates"]))

    @torch.no_grad()
    def compare(
        self, model: nn.Module, detector: Detector, inputs: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Instances]], list[dict[str, Instances]]]:
        """Run both on a batch and add its images.

        Args:
            model: the model, in eval mode.
            detector: the export.
            inputs: Detectron2's inputs, with integer-valued "image" (3, H, W) in [0, 255].

        Returns:
            The outputs of the model and of the export, in the format of the model.
        """
        expected = [{"instances": x["instances"].to("cpu")} for x in model(list(inputs))]
        sizes = [x["instances"].image_size for x in expected]
        found = detector.detect(detector_inputs(inputs)[0], sizes)
        info = detector.info
        for result, arrays in zip(expected, found, strict=True):
            instances = result["instances"]
            full = max(len(instances), len(arrays["scores"])) >= info.max_detections
            limit = float(instances.scores[-1]) if full and len(instances) else info.keep_thresh
            self.add(instances, arrays, least_score=limit + self.tolerance.score)
        pairs = zip(found, sizes, strict=True)
        return expected, [{"instances": to_instances(*pair)} for pair in pairs]

    def faults(self) -> list[str]:
        """Return the reasons why the two disagree; empty if they agree."""
        faults, tolerance = [], self.tolerance
        if self.expected == 0:
            faults.append("the model finds no instance in these images to compare")
        unmatched = max(self.expected, self.found) - self.matched
        if unmatched > tolerance.share * max(self.expected, self.found):
            faults.append(f"{unmatched} instances are found by only one of the two")
        if self.off > tolerance.share * self.matched:
            faults.append(
                f"{self.off} of {self.matched} pairs differ by more than {tolerance.score} in their"
                f" score (at most by {self.score_diff:.2g}) or overlap by less than {tolerance.iou}"
                f" (at least by {self.min_iou:.3f})"
            )
        return faults

    def __str__(self) -> str:
        return (
            f"{self.images} images: {self.matched} instances of both, {self.expected} of the model,"
            f" {self.found} of the export; scores differ by at most {self.score_diff:.2g}, masks "
            f"overlap by at least {self.min_iou:.4f} IoU; at most {self.most_candidates} candidates"
        )


def _count_unmatched(scores: Tensor, matched: list[int], least_score: float) -> int:
    unmatched = torch.ones_like(scores, dtype=torch.bool)
    unmatched[matched] = False
    return int((scores[unmatched] > least_score).sum())


def _pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the IoU (N, N') float32 of masks (N, H, W) and (N', H, W); 1 for two empty masks."""
    ious = pairwise_mask_iou(a, b)
    a_empty, b_empty = (~masks.flatten(1).any(dim=1) for masks in (a, b))
    return ious.masked_fill(a_empty[:, None] & b_empty, 1.0)


def mixed_batch(inputs: Sequence[Mapping[str, Any]], color: Tensor) -> list[dict[str, Any]]:
    """Return a batch of images of different sizes, one of them without objects.

    Args:
        inputs: Detectron2's inputs, at least one.
        color: (3,) color of the image without objects, in [0, 255].

    Returns:
        The first input, the last one cropped by an eighth of its rows and columns, and an image of
        uniform color.
    """
    first, last = inputs[0]["image"], inputs[-1]["image"]
    height, width = (max(1, side * 7 // 8) for side in last.shape[1:])
    flat = color.round().to(first.dtype).view(3, 1, 1).expand_as(first)
    return [{"image": image} for image in (first, last[:, :height, :width], flat)]
