"""The head of SOLO (arXiv:1912.04488, section 3.2): one mask channel per cell.

B images, L levels, S grid side, P selected cells, C channels of the mask tower, H W size of the
masks of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, LevelMasksHead
from solo_d2.modeling.layers import predictor
from solo_d2.ops.mask_factors import MaskFactor, resize
from solo_d2.structures import GridCells, HeadOutputs


@dataclass(frozen=True)
class SOLOOutputs(HeadOutputs):
    """Outputs of `SOLOHead`.

    Attributes:
        mask_features: L tensors (B, C, H, W), input of the last convolution, at twice the size of
            the level's feature.
    """

    mask_features: list[Tensor]


@SOLO_HEAD_REGISTRY.register()
class SOLOHead(LevelMasksHead[SOLOOutputs]):
    """Class tower, mask tower, and a 1x1 convolution to S * S masks for each level.

    Only the channels of selected cells are computed, out of S * S (1600 on the finest grid). The
    output channels of a convolution are independent, so results do not change.
    """

    def _make_mask_branch(self, num_coord_convs: int) -> None:
        self.mask_tower = self._make_tower(coords="xy", num_coord_convs=num_coord_convs)
        self.mask_logits = nn.ModuleList(
            predictor(self.conv_dim, side**2, kernel_size=1, prior_prob=self.prior_prob)
            for side in self.num_grids
        )

    def forward(self, features: dict[str, Tensor]) -> SOLOOutputs:
        """Predict class logits and mask features; see `SOLOHeadBase.forward`."""
        level_features = self.level_features(features)
        inputs = zip(level_features, self.mask_sizes(features), strict=True)
        return SOLOOutputs(
            class_logits=self.grid_logits(level_features),
            mask_size=self.size_at(min(self.mask_strides), features),
            mask_features=[resize(self.mask_tower(x), size) for x, size in inputs],
        )

    def mask_factors(
        self, outputs: SOLOOutputs, image: int | Tensor, cells: GridCells
    ) -> Sequence[MaskFactor]:
        """Return the channels of the level's last convolution for the cells."""
        conv = cast(nn.Conv2d, self.mask_logits[cells.group])
        chosen = self.cells_of_level(cells)
        kernels, bias = conv.weight[chosen].flatten(1), cast(Tensor, conv.bias)[chosen]
        return (MaskFactor(outputs.mask_features[cells.group], kernels, bias),)
