"""The head of Decoupled SOLO (arXiv:1912.04488, section 4): a mask is a product of two maps.

B images, L levels, S grid side, P chosen cells, C channels of the towers, H W size of a level's
masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, LevelMasksHead, resize
from solo_d2.modeling.layers import predictor
from solo_d2.structures import GridCells, HeadOutputs


@dataclass(frozen=True)
class DecoupledSOLOOutputs(HeadOutputs):
    """Outputs of the decoupled heads.

    Attributes:
        column_logits: L tensors (B, S, H, W), a map for each column of the grid.
        row_logits: the same for each row.
    """

    column_logits: list[Tensor]
    row_logits: list[Tensor]


@SOLO_HEAD_REGISTRY.register()
class DecoupledSOLOHead(LevelMasksHead[DecoupledSOLOOutputs]):
    """Class tower, and a mask tower for the columns (sees x) and one for the rows (sees y)."""

    def _make_mask_branch(self, num_coord_convs: int) -> None:
        self._make_mask_towers(num_coord_convs)
        self.column_logits, self.row_logits = (
            nn.ModuleList(
                predictor(self.conv_dim, side, prior_prob=self.prior_prob)
                for side in self.num_grids
            )
            for _ in range(2)
        )

    def _make_mask_towers(self, num_coord_convs: int) -> None:
        self.column_tower = self._make_tower(coords="x", num_coord_convs=num_coord_convs)
        self.row_tower = self._make_tower(coords="y", num_coord_convs=num_coord_convs)

    def mask_features(self, feature: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The features that the maps of columns and rows are predicted from.

        Args:
            feature: (B, C, H', W'), a level's.
            size: H and W of the level's masks.

        Returns:
            Two tensors (B, C, H, W).
        """
        return resize(self.column_tower(feature), size), resize(self.row_tower(feature), size)

    def forward(self, features: dict[str, Tensor]) -> DecoupledSOLOOutputs:
        """Predict class logits and the maps; see `SOLOHeadBase.forward`."""
        class_logits, column_logits, row_logits = [], [], []
        for level, feature in enumerate(self.level_features(features)):
            side = self.num_grids[level]
            class_logits.append(self.class_branch(self.align(feature, (side, side))))
            size = self.size_at(self.mask_strides[level], features)
            column_feature, row_feature = self.mask_features(feature, size)
            column_logits.append(self.column_logits[level](column_feature))
            row_logits.append(self.row_logits[level](row_feature))
        return DecoupledSOLOOutputs(
            class_logits=class_logits,
            mask_size=self.size_at(min(self.mask_strides), features),
            column_logits=column_logits,
            row_logits=row_logits,
        )

    def mask_maps(self, outputs: DecoupledSOLOOutputs, group: int) -> Sequence[Tensor]:
        """The level's maps of columns and rows; see `SOLOHeadBase.mask_maps`."""
        return outputs.column_logits[group], outputs.row_logits[group]

    def mask_params(self, outputs: DecoupledSOLOOutputs, cells: GridCells) -> Sequence[Tensor]:
        """Column and row of each cell, (P,) int64; see `SOLOHeadBase.mask_params`."""
        cell, side = self.cells_of_level(cells), self.num_grids[cells.group]
        return cell % side, cell // side

    def make_masks(self, maps: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        """Column map times row map (equation 5); see `SOLOHeadBase.make_masks`."""
        column, row = _factors(maps, params)
        return column * row

    def finest_masks(self, outputs: DecoupledSOLOOutputs, cells: GridCells) -> Tensor:
        """As published, the maps are resized before they are multiplied."""
        maps = [x[cells.image] for x in self.mask_maps(outputs, cells.group)]
        column, row = (
            resize(factor[None], outputs.mask_size)[0]
            for factor in _factors(maps, self.mask_params(outputs, cells))
        )
        return column * row


def _factors(maps: Sequence[Tensor], params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The probabilities (P, H, W) of the cells' columns and rows."""
    column, row = (logits[index] for logits, index in zip(maps, params, strict=True))
    return column.sigmoid(), row.sigmoid()
