"""Data structures: head outputs, targets, candidates, predictions.

Shape letters, used throughout the project: B images, L levels, S grid side, T cells of all levels
(sum of S^2), K classes, N instances, P positive cells, M candidates, D kernel length, E channels of
the mask feature, H W rows and columns.

Cells have one index over all levels: level by level, and row by row within a level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from solo_d2.ops.candidates import flatten_levels
from solo_d2.ops.mask_factors import MaskFactor
from solo_d2.ops.mask_iou import MaskRows


@dataclass(frozen=True)
class HeadOutputs:
    """Predictions of a head for a batch; each head adds the tensors that its masks are made from.

    Attributes:
        class_logits: L tensors (B, K, S, S).
        mask_size: height and width of the masks at the finest mask stride.
    """

    class_logits: list[Tensor]
    mask_size: tuple[int, int]


@dataclass(frozen=True)
class NetworkOutputs:
    """Predictions of the whole network for a batch.

    Attributes:
        head: outputs of the head.
        semantic_logits: (B, C, H, W) from the semantic branch of a panoptic model, else None.
    """

    head: HeadOutputs
    semantic_logits: Tensor | None = None


@dataclass(frozen=True)
class GridCells:
    """Selected cells of one mask group.

    Attributes:
        index: (P,) int64 in [0, T), any order; a cell may occur more than once; P may be 0.
        group: their mask group, see `MaskHead`.
        levels: the levels that they are on, if known; empty: any.
    """

    index: Tensor
    group: int = 0
    levels: tuple[int, ...] = ()


class MaskHead(Protocol):
    """Interface of a head for losses and inference; `SOLOHeadBase` implements it.

    Levels whose masks are made from the same maps form a mask group. Groups are numbered from 0.

    Attributes:
        mask_strides: stride in input pixels of the masks of each level.
        mask_groups: mask group of each level, non-decreasing.
    """

    mask_strides: tuple[int, ...]
    mask_groups: tuple[int, ...]

    def masks(self, outputs: Any, image: int, cells: GridCells) -> Tensor:
        """Compute the masks of selected cells of an image.

        Args:
            outputs: what the head's `forward` returned.
            image: index of the image in the batch.
            cells: P cells of one mask group.

        Returns:
            (P, H, W) mask probabilities at the group's stride; (0, H, W), still connected to the
            outputs, for no cells.
        """

    def mask_factors(
        self, outputs: Any, image: int | Tensor, cells: GridCells
    ) -> Sequence[MaskFactor] | None:
        """Return the factors whose product gives these masks; training and export use them too.

        Args:
            outputs: what the head's `forward` returned.
            image: index of the image in the batch, or (P,) int64, that of each cell.
            cells: P cells of one mask group.

        Returns:
            Factors with the maps of the whole batch; None if the masks are not such a product.
        """


@dataclass(frozen=True)
class GridTargets:
    """Training targets of a batch. Each instance mask is stored once and referenced by index.

    Attributes:
        classes: (B, T) int64 in [0, K]; K is background.
        cells: (P,) int64 in [0, T), the cell of each mask sample; ordered by image, then level.
        instances: (P,) int64 in [0, N), the instance of each mask sample, N counted over the batch.
        num_samples: B tuples of L ints, the number of mask samples per image and level.
        masks: stride -> (N, H, W) bool, the padded instance masks downsampled by that stride, or
            their contours.
        num_positive_cells: cells with a class.
        num_conflicts: claims of cells minus positive cells: those that share a cell with another.
    """

    classes: Tensor
    cells: Tensor
    instances: Tensor
    num_samples: tuple[tuple[int, ...], ...]
    masks: dict[int, Tensor]
    num_positive_cells: int
    num_conflicts: int


@dataclass(frozen=True)
class BatchTotals:
    """Counts of a batch in one process, used to normalize losses.

    Attributes:
        num_positive_cells: see `GridTargets`.
        num_mask_samples: P.
        num_conflicts: see `GridTargets`.
        num_labelled: pixels with a semantic label; None if the batch is not split, or the model
            has no semantic branch.
    """

    num_positive_cells: int
    num_mask_samples: int
    num_conflicts: int
    num_labelled: int | None = None

    @classmethod
    def of(cls, micro_batches: Sequence[GridTargets]) -> "BatchTotals":
        """Sum over the micro-batches of a batch."""
        return cls(
            num_positive_cells=sum(targets.num_positive_cells for targets in micro_batches),
            num_mask_samples=sum(len(targets.cells) for targets in micro_batches),
            num_conflicts=sum(targets.num_conflicts for targets in micro_batches),
        )


@dataclass(frozen=True)
class MicroBatch:
    """What a micro-batch needs for its gradients to add up to those of the whole batch.

    Attributes:
        index: index of the micro-batch, from 0.
        padded_size: height and width of the padded input of the whole batch, which the grids
            divide.
        targets: targets of this micro-batch.
        totals: counts of the whole batch.
    """

    index: int
    padded_size: tuple[int, int]
    targets: GridTargets
    totals: BatchTotals


@dataclass(frozen=True)
class Candidates:
    """Candidate instances of one image.

    Attributes:
        cells: (M,) int64 in [0, T).
        classes: (M,) int64 in [0, K).
        scores: (M,) float32 in [0, 1].
        masks: (M, H, W) bool at the finest mask stride; None before masks are computed.
        rows: which of `masks`, then (N, H, W), are those of the candidates; None: all in order.
    """

    cells: Tensor
    classes: Tensor
    scores: Tensor
    masks: Tensor | None = None
    rows: MaskRows | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Tensor | slice) -> "Candidates":
        """Select candidates by index, boolean mask or slice."""
        masks, rows = self.masks, self.rows
        if rows is not None:
            rows = rows._replace(indices=rows.indices[index])
        elif masks is not None:
            masks = masks[index]
        return Candidates(self.cells[index], self.classes[index], self.scores[index], masks, rows)

    def best(self, most: int) -> "Candidates":
        """Return the best candidates by descending score; ties keep their order."""
        return self.select(self.scores.argsort(descending=True, stable=True)[:most])

    def concatenate(self, other: "Candidates") -> "Candidates":
        """Append other candidates without `rows`; either both have masks or neither does."""
        assert self.rows is None
        assert other.rows is None
        masks = None
        if self.masks is not None and other.masks is not None:
            masks = torch.cat([self.masks, other.masks])
        return Candidates(
            torch.cat([self.cells, other.cells]),
            torch.cat([self.classes, other.classes]),
            torch.cat([self.scores, other.scores]),
            masks,
        )


@dataclass(frozen=True)
class Predictions:
    """Instances of one image at the output size, best first.

    Attributes:
        scores: (M,) float32 in [0, 1], non-increasing.
        classes: (M,) int64 in [0, K).
        masks: (M, H, W) bool; contours one pixel wide if the model predicts contours.
        boxes: (M, 4) float32, XYXY in pixels, tight around the mask, right and bottom edge
            exclusive; zeros for an empty mask.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor
    boxes: Tensor

    def first(self, num: int, *, copy: bool = False) -> "Predictions":
        """Return the best instances, copied if they are less than half of all or `copy` is set."""
        copy = copy or 2 * num < len(self.scores)
        parts = [x[:num] for x in (self.scores, self.classes, self.masks, self.boxes)]
        return Predictions(*(x.clone() if copy else x for x in parts))


def cell_levels(num_grids: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return the level of each cell.

    Args:
        num_grids: grid side S of each level.
        device: device of the result; None: torch's default.

    Returns:
        (T,) int64 in [0, L).
    """
    sizes = [side * side for side in num_grids]
    levels, repeats = torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device)
    return levels.repeat_interleave(repeats, output_size=sum(sizes))


def take_cells(maps: Sequence[Tensor], image: int | Tensor, cells: Tensor) -> Tensor:
    """Gather the values of maps at selected cells.

    Args:
        maps: L tensors (B, C, S, S).
        image: index of the image, or (P,) int64, the image of each cell.
        cells: (P,) int64 in [0, T).

    Returns:
        (P, C).
    """
    if isinstance(image, int):  # only its maps are laid out by cell
        maps, image = [level[image : image + 1] for level in maps], 0
    return flatten_levels(maps)[image, cells]


def map_tensors(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Apply a function to all tensors in nested lists and dataclasses; keep everything else."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    if isinstance(outputs, list):
        return [map_tensors(function, part) for part in outputs]
    if is_dataclass(outputs) and not isinstance(outputs, type):
        parts = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
        return replace(outputs, **{k: map_tensors(function, x) for k, x in parts.items()})
    return outputs
