"""Head outputs that give a wanted number of candidates with the masks of a scene.

Shape letters: M candidates, T cells of all levels, E channels of the mask feature, H and W its rows
and columns, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.dynamic_conv import dynamic_conv
from solo_d2.structures import GridCells, HeadOutputs, flatten_levels
from tools.benchmarks.scenes import make_scene

# Published.
NUM_GRIDS = (40, 36, 24, 16, 12)


@dataclass(frozen=True)
class SceneOutputs(HeadOutputs):
    """What a head with 1x1 kernels predicts for one image.

    Attributes:
        kernels: (T, E), a kernel for each cell.
        mask_feature: (E, H, W), never negative.
    """

    kernels: Tensor
    mask_feature: Tensor


def make_outputs(
    num: int, size: tuple[int, int], channels: int, num_classes: int, num_cells: int, seed: int = 0
) -> SceneOutputs:
    """Draw head outputs that give wanted candidates.

    Each channel of the feature but the first holds a blurred object, or a near-duplicate of one.
    A candidate's kernel picks one of them, with some noise.

    Args:
        num: M.
        size: H and W.
        channels: E.
        num_classes: K.
        num_cells: cells that the candidates are in, at most M; further ones are second, third, ...
            classes of cells.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    masks, labels, _ = make_scene(channels - 1, size, num_classes, seed)
    blurred = F.avg_pool2d(masks[:, None].float(), 5, stride=1, padding=2)[:, 0]
    feature = torch.cat([torch.ones(1, *size), 8 * blurred])
    # Every other row and column, out of reach of each other's point NMS.
    levels = [torch.arange(side * side).view(side, side)[::2, ::2].flatten() for side in NUM_GRIDS]
    starts = torch.tensor([0] + [side * side for side in NUM_GRIDS[:-1]]).cumsum(0).tolist()
    free = torch.cat([cells + start for cells, start in zip(levels, starts, strict=True)])
    if not num <= num_cells * num_classes or not num_cells <= min(num, len(free)):
        raise ValueError(f"{num} candidates don't fit into {num_cells} cells of {len(free)}")
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
    parts = logits.split([side * side for side in NUM_GRIDS])
    class_logits = [
        part.T.reshape(1, num_classes, side, side)
        for part, side in zip(parts, NUM_GRIDS, strict=True)
    ]
    return SceneOutputs(class_logits, size, kernels, feature)


def to_device(outputs: SceneOutputs, device: torch.device) -> SceneOutputs:
    """The same outputs on a device."""
    return SceneOutputs(
        [logits.to(device) for logits in outputs.class_logits],
        outputs.mask_size,
        outputs.kernels.to(device),
        outputs.mask_feature.to(device),
    )


def cell_masks(outputs: Any, cells: GridCells) -> Tensor:
    """Like `SOLOv2Head.cell_masks`."""
    return dynamic_conv(outputs.kernels[cells.index], outputs.mask_feature).sigmoid_()


def mask_product(outputs: Any, cells: GridCells) -> tuple[Tensor, Tensor]:
    """Like `SOLOv2Head.mask_product`."""
    return outputs.kernels[cells.index], outputs.mask_feature


@dataclass(frozen=True)
class KernelOutputs(HeadOutputs):
    """What SOLOv2's head predicts for a batch, without the head.

    Attributes:
        kernel_params: L tensors (B, D, S, S).
        mask_feature: (B, E, H, W).
    """

    kernel_params: list[Tensor]
    mask_feature: Tensor


class KernelHead:
    """Makes the masks of `KernelOutputs`, as `SOLOv2Head` does; all levels are one mask group."""

    def __init__(self, mask_strides: Sequence[int], kernel_radius: int = 0):
        """Make the head.

        Args:
            mask_strides: stride of the masks of each level.
            kernel_radius: half the side of the kernels, rounded down.
        """
        self.mask_strides = tuple(mask_strides)
        self.mask_groups = (0,) * len(self.mask_strides)
        self.kernel_radius = kernel_radius

    def mask_maps(self, outputs: KernelOutputs, group: int) -> Sequence[Tensor]:
        """The mask feature."""
        return (outputs.mask_feature,)

    def mask_params(self, outputs: KernelOutputs, cells: GridCells) -> Sequence[Tensor]:
        """The kernels of the cells."""
        return (flatten_levels(outputs.kernel_params)[cells.image, cells.index],)

    def make_masks(self, maps: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        """Probabilities."""
        return dynamic_conv(params[0], maps[0]).sigmoid_()
