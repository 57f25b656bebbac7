"""Head outputs with a given number of candidates and the masks of a synthetic scene.

Shape letters: M candidates, T cells of all levels, E channels of the mask feature, H and W its rows
and columns, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.mask_factors import MaskFactor, multiply_factors
from solo_d2.structures import GridCells, HeadOutputs, take_cells
from tools.benchmarks.scenes import make_scene

# Published grid sides.
NUM_GRIDS = (40, 36, 24, 16, 12)


@dataclass(frozen=True)
class KernelOutputs(HeadOutputs):
    """Outputs of SOLOv2's head for a batch, without the head.

    kernel_params: L tensors (B, D, S, S). mask_feature: (B, E, H, W), not negative.
    """

    kernel_params: list[Tensor]
    mask_feature: Tensor


class KernelHead:
    """Computes the masks of `KernelOutputs` as `SOLOv2Head` does; one mask group."""

    def __init__(self, mask_strides: Sequence[int], *, has_factors: bool = True):
        """Set the mask stride of each level."""
        self.mask_strides = tuple(mask_strides)
        self.mask_groups = (0,) * len(self.mask_strides)
        self.has_factors = has_factors

    def mask_factors(
        self, outputs: KernelOutputs, image: int | Tensor, cells: GridCells
    ) -> list[MaskFactor] | None:
        """Return the kernels of the cells and the mask feature."""
        return self._factors(outputs, image, cells) if self.has_factors else None

    def masks(self, outputs: KernelOutputs, image: int, cells: GridCells) -> Tensor:
        """Return mask probabilities."""
        factors = self._factors(outputs, image, cells)
        return multiply_factors([factor.of_image(image) for factor in factors])

    def _factors(
        self, outputs: KernelOutputs, image: int | Tensor, cells: GridCells
    ) -> list[MaskFactor]:
        kernels = take_cells(outputs.kernel_params, image, cells.index)
        return [MaskFactor(outputs.mask_feature, kernels)]


def make_outputs(
    num: int, size: tuple[int, int], channels: int, num_classes: int, num_cells: int, seed: int = 0
) -> KernelOutputs:
    """Generate head outputs with a given number of candidates.

    Each channel of the feature but the first holds a blurred object or a near-duplicate. A
    candidate's kernel selects one of them, with some noise.

    Args:
        num: M.
        size: H and W.
        channels: E.
        num_classes: K.
        num_cells: number of cells with candidates, at most M; the others are further classes of
            them.
        seed: random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    masks, labels, _ = make_scene(channels - 1, size, num_classes, seed)
    blurred = F.avg_pool2d(masks[:, None].float(), 5, stride=1, padding=2)[:, 0]
    feature = torch.cat([torch.ones(1, *size), 8 * blurred])
    # Every other row and column, so that point NMS keeps all of them.
    levels = [torch.arange(side * side).view(side, side)[::2, ::2].flatten() for side in NUM_GRIDS]
    starts = torch.tensor([0] + [side * side for side in NUM_GRIDS[:-1]]).cumsum(0).tolist()
    free = torch.cat([cells + start for cells, start in zip(levels, starts, strict=True)])
    if not num <= num_cells * num_classes or not num_cells <= min(num, len(free)):
        raise ValueError(f"{num} candidates do not fit into {num_cells} cells of {len(free)}")
    cells = free[torch.randperm(len(free), generator=generator)[:num_cells]]
    kernels = torch.zeros(sum(side * side for side in NUM_GRIDS), channels)
    kernels[cells] = 0.02 * torch.randn(num_cells, channels, generator=generator)
    objects = torch.arange(num_cells) % (channels - 1)
    kernels[cells, 0] = -4
    kernels[cells, 1 + objects] += 1
    logits = torch.full((len(kernels), num_classes), -8.0)
    turn = torch.arange(num)
    classes = (labels[objects[turn % num_cells]] + turn // num_cells) % num_classes
    probs = 0.11 + 0.84 * torch.rand(num, generator=generator).square()
    logits[cells[turn % num_cells], classes] = probs.logit()
    return KernelOutputs(_by_level(logits), size, _by_level(kernels), feature[None])


def _by_level(values: Tensor) -> list[Tensor]:
    """Split values (T, C) of all cells into L tensors (1, C, S, S)."""
    levels = zip(values.split([side * side for side in NUM_GRIDS]), NUM_GRIDS, strict=True)
    return [level.T.reshape(1, -1, side, side) for level, side in levels]


def to_device(outputs: KernelOutputs, device: torch.device) -> KernelOutputs:
    """Move outputs to a device."""
    logits, kernels = (
        [level.to(device) for level in levels]
        for levels in (outputs.class_logits, outputs.kernel_params)
    )
    return KernelOutputs(logits, outputs.mask_size, kernels, outputs.mask_feature.to(device))
