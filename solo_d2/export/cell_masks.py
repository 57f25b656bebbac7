"""Masks of chosen cells of a batch with sizes that do not depend on the data, for each head.

The heads' own `finest_masks` takes the cells of one image and one level at a time; how many these
are depends on the image, which a graph of fixed shapes cannot say. Here M cells of each image come
from any levels.

B images, L levels, S grid side, T cells of all levels, M chosen cells, E channels, D kernel length,
h w rows and columns of the masks at the finest mask stride.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo_d2.modeling.heads import DecoupledSOLOHead, SOLOHead, SOLOv2Head
from solo_d2.modeling.heads.base import SOLOHeadBase, resize
from solo_d2.modeling.heads.decoupled_solo import DecoupledSOLOOutputs
from solo_d2.modeling.heads.solo import SOLOOutputs
from solo_d2.modeling.heads.solov2 import SOLOv2Outputs
from solo_d2.structures import cell_levels, flatten_levels
from solo_d2.utils.errors import ConfigError

# From the head's outputs and cells (B, M) int64 to (B, M, h, w) float32 probabilities.
CellMasks = Callable[[Any, Tensor], Tensor]


def build_cell_masks(head: SOLOHeadBase[Any]) -> nn.Module:
    """Choose the module that makes the masks of a head's cells, see `CellMasks`.

    Raises:
        ConfigError: the head is of a kind that is not exported.
    """
    for kind, make in CELL_MASKS.items():
        if isinstance(head, kind):
            return make(head)
    known = ", ".join(kind.__name__ for kind in CELL_MASKS)
    raise ConfigError(
        f"MODEL.SOLO.HEAD.NAME is {type(head).__name__!r}, but exported are {known} and what "
        "derives from these"
    )


class SOLOv2Masks(nn.Module):
    """Dynamic kernels on the mask feature, which all levels share or each has for itself."""

    def __init__(self, head: SOLOv2Head):
        super().__init__()
        self.combine = _LevelMasks(head)
        self.is_unified = head.is_unified

    def forward(self, outputs: SOLOv2Outputs, cells: Tensor) -> Tensor:
        """See `CellMasks`."""
        kernels = take(flatten_levels(outputs.kernel_params), cells)
        if self.is_unified:
            return dynamic_conv_batch(kernels, outputs.mask_features[0]).float().sigmoid()
        return self.combine(kernels, outputs.mask_features, outputs.mask_size, cells)


class SOLOMasks(nn.Module):
    """The rows of SOLO's last convolutions."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, head: SOLOHead):
        super().__init__()
        self.combine = _LevelMasks(head)
        convs = [cast(nn.Conv2d, conv) for conv in head.mask_logits]
        kernels = torch.cat([conv.weight.detach().flatten(1) for conv in convs])
        self.register_buffer("kernels", kernels)  # (T, E)
        bias = torch.cat([cast(Tensor, conv.bias).detach() for conv in convs])
        self.register_buffer("bias", bias)  # (T,)

    def forward(self, outputs: SOLOOutputs, cells: Tensor) -> Tensor:
        """See `CellMasks`."""
        kernels, bias = self.kernels[cells], self.bias[cells]
        return self.combine(kernels, outputs.mask_features, outputs.mask_size, cells, bias)


class _LevelMasks(nn.Module):
    """All masks at each level's size; of each the one of its cell's level is taken."""

    cell_levels: Tensor

    def __init__(self, head: SOLOHeadBase[Any]):
        super().__init__()
        self.mask_strides = head.mask_strides
        self.register_buffer("cell_levels", cell_levels(head.num_grids))

    def forward(
        self,
        kernels: Tensor,
        features: Sequence[Tensor],
        size: tuple[int, int],
        cells: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Make masks.

        Args:
            kernels: (B, M, D).
            features: L tensors (B, E, H, W).
            size: h and w.
            cells: (B, M) int64.
            bias: (B, M).

        Returns:
            (B, M, h, w) float32.
        """
        levels = self.cell_levels[cells][:, :, None, None]
        masks: Tensor | None = None
        for level, feature in enumerate(features):
            logits = dynamic_conv_batch(kernels, feature).float()
            if bias is not None:
                logits = logits + bias.float()[:, :, None, None]
            probs = logits.sigmoid()
            if self.mask_strides[level] != min(self.mask_strides):
                probs = resize(probs, size)
            masks = probs if masks is None else torch.where(levels == level, probs, masks)
        return cast(Tensor, masks)


class DecoupledMasks(nn.Module):
    """Column maps times row maps. There are few (2 S a level), so all are resized, then chosen."""

    column_of_cell: Tensor
    row_of_cell: Tensor

    def __init__(self, head: DecoupledSOLOHead):
        super().__init__()
        self.mask_strides = head.mask_strides
        # Of all levels, counted through.
        columns, rows, start = [], [], 0
        for side in head.num_grids:
            row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            columns.append(start + column.flatten())
            rows.append(start + row.flatten())
            start += side
        self.register_buffer("column_of_cell", torch.cat(columns))
        self.register_buffer("row_of_cell", torch.cat(rows))

    def forward(self, outputs: DecoupledSOLOOutputs, cells: Tensor) -> Tensor:
        """See `CellMasks`."""
        column_maps = self._maps(outputs.column_logits, outputs.mask_size)
        row_maps = self._maps(outputs.row_logits, outputs.mask_size)
        return take(column_maps, self.column_of_cell[cells]) * take(
            row_maps, self.row_of_cell[cells]
        )

    def _maps(self, logits: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(B, sum of S, h, w) probabilities."""
        maps = []
        for level, stride in zip(logits, self.mask_strides, strict=True):
            probs = level.float().sigmoid()
            maps.append(probs if stride == min(self.mask_strides) else resize(probs, size))
        return torch.cat(maps, dim=1)


# The most special kind first. A new head needs an entry here if its masks are made in another way.
CELL_MASKS: dict[type, Callable[[Any], nn.Module]] = {
    DecoupledSOLOHead: DecoupledMasks,
    SOLOHead: SOLOMasks,
    SOLOv2Head: SOLOv2Masks,
}


def take(values: Tensor, index: Tensor) -> Tensor:
    """Choose entries of each image, by one gather of whole entries.

    Args:
        values: (B, N, *).
        index: (B, M) int64 in [0, N).

    Returns:
        (B, M, *).
    """
    batch, num = values.shape[:2]
    start = torch.arange(batch, device=index.device)[:, None] * num
    chosen = values.flatten(0, 1).index_select(0, (index + start).flatten())
    return chosen.view(batch, index.shape[1], *values.shape[2:])


def dynamic_conv_batch(kernels: Tensor, feature: Tensor) -> Tensor:
    """`dynamic_conv` for several images: a product for each position of the kernels.

    Args:
        kernels: (B, M, D), D = side^2 * E, in the order channel, row, column.
        feature: (B, E, H, W).

    Returns:
        (B, M, H, W) logits.
    """
    batch, num, length = kernels.shape
    channels, height, width = feature.shape[1:]
    side = round((length / channels) ** 0.5)
    weight = kernels.view(batch, num, channels, side, side)
    padded = F.pad(feature, [side // 2] * 4) if side > 1 else feature
    logits: Tensor | None = None
    for row in range(side):
        for column in range(side):
            window = padded[:, :, row : row + height, column : column + width].flatten(2)
            part = weight[:, :, :, row, column] @ window
            logits = part if logits is None else logits + part
    return cast(Tensor, logits).view(batch, num, height, width)
