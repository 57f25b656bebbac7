"""The heads of Decoupled SOLO (arXiv:1912.04488, section 4): a mask is a product of two maps.

B images, L levels, S grid side, P selected cells, C channels of the towers, H W size of a level's
masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, LevelMasksHead
from solo_d2.modeling.layers import predictor
from solo_d2.ops.mask_factors import MaskFactor, resize
from solo_d2.structures import GridCells, HeadOutputs


@dataclass(frozen=True)
class DecoupledSOLOOutputs(HeadOutputs):
    """Outputs of the decoupled heads.

    Attributes:
        column_logits: L tensors (B, S, H, W), one map per column of the grid.
        row_logits: likewise for rows.
    """

    column_logits: list[Tensor]
    row_logits: list[Tensor]


@SOLO_HEAD_REGISTRY.register()
class DecoupledSOLOHead(LevelMasksHead[DecoupledSOLOOutputs]):
    """Class tower, and mask towers for columns (with x coordinates) and rows (with y)."""

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
        """Return the features (B, C, *size) of the column and row maps."""
        return resize(self.column_tower(feature), size), resize(self.row_tower(feature), size)

    def forward(self, features: dict[str, Tensor]) -> DecoupledSOLOOutputs:
        """Predict class logits and the maps; see `SOLOHeadBase.forward`."""
        level_features = self.level_features(features)
        inputs = zip(level_features, self.mask_sizes(features), strict=True)
        mask_features = [self.mask_features(feature, size) for feature, size in inputs]
        pairs = zip(self.column_logits, self.row_logits, mask_features, strict=True)
        logits = [(column(x), row(y)) for column, row, (x, y) in pairs]
        return DecoupledSOLOOutputs(
            class_logits=self.grid_logits(level_features),
            mask_size=self.size_at(min(self.mask_strides), features),
            column_logits=[columns for columns, _ in logits],
            row_logits=[rows for _, rows in logits],
        )

    def mask_factors(
        self, outputs: DecoupledSOLOOutputs, image: int | Tensor, cells: GridCells
    ) -> Sequence[MaskFactor]:
        """Return the maps of each cell's column and row (equation 5)."""
        cell, side = self.cells_of_level(cells), self.num_grids[cells.group]
        return (
            MaskFactor(outputs.column_logits[cells.group], cell % side),
            MaskFactor(outputs.row_logits[cells.group], cell // side),
        )


@SOLO_HEAD_REGISTRY.register()
class DecoupledSOLOLightHead(DecoupledSOLOHead):
    """The light head of the published code: both maps share a mask tower with x and y."""

    def _make_mask_towers(self, num_coord_convs: int) -> None:
        self.mask_tower = self._make_tower(coords="xy", num_coord_convs=num_coord_convs)

    def mask_features(self, feature: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the shared feature twice; see `DecoupledSOLOHead.mask_features`."""
        shared = resize(self.mask_tower(feature), size)
        return shared, shared
