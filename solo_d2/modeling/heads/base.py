"""Base classes of the heads: grids of the levels, class branch and its input."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from solo_d2.modeling.layers import ConvTower, predictor
from solo_d2.ops.mask_factors import MaskFactor, multiply_factors, resize
from solo_d2.structures import GridCells, HeadOutputs

Outputs = TypeVar("Outputs", bound=HeadOutputs)

SOLO_HEAD_REGISTRY = Registry("SOLO_HEAD")
SOLO_HEAD_REGISTRY.__doc__ = """
Heads. Called with (cfg, input_shape), they return a `SOLOHeadBase`.
"""


class SOLOHeadBase(nn.Module, ABC, Generic[Outputs]):
    """Head that predicts class logits for the cells of each level, and masks for selected cells.

    A head implements `forward` and, for the masks, `mask_factors` or `masks`. The class branch is
    the same in all heads.

    Attributes:
        feature_strides: stride in input pixels of the backbone feature of each level.
        mask_strides: stride in input pixels of the masks of each level.
        mask_groups: mask group of each level, non-decreasing; see `MaskHead`.
    """

    # Whether the head reads the keys of MODEL.SOLO.MASK_FEATURE.
    has_mask_feature: ClassVar[bool] = False

    mask_strides: tuple[int, ...]
    mask_groups: tuple[int, ...]

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        input_shape: dict[str, ShapeSpec],
        strides: Sequence[int],
        num_grids: Sequence[int],
        num_classes: int,
        num_convs: int,
        conv_dim: int,
        norm: str = "GN",
        prior_prob: float = 0.01,
        align: str = "interpolate",
        deform: str = "",
        num_deform_convs: int = 1,
    ):
        """Create the class branch.

        Args:
            in_features: name of the backbone feature of each level.
            input_shape: channels and stride of the backbone features.
            strides: stride to which the feature of each level is resized.
            num_grids: grid side S of each level.
            num_classes: K.
            num_convs: number of convolutions of each tower.
            conv_dim: channels of the towers.
            norm: norm of the towers, a name of Detectron2's.
            prior_prob: initial probability of classes, and of mask pixels if the head predicts
                them.
            align: how a feature is resized to S x S, a key of `ALIGNMENTS`.
            deform: kind of deformable convolution in the towers, or "".
            num_deform_convs: number of deformable convolutions at the end of each tower.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.feature_strides = tuple(input_shape[name].stride for name in in_features)
        self.strides = tuple(strides)
        self.num_grids = tuple(num_grids)
        self.align = ALIGNMENTS[align]
        self.in_channels = input_shape[in_features[0]].channels
        self.conv_dim = conv_dim
        self.prior_prob = prior_prob
        self._make_tower = partial(
            ConvTower,
            in_channels=self.in_channels,
            channels=conv_dim,
            num_convs=num_convs,
            norm=norm,
            deform=deform,
            num_deform_convs=num_deform_convs,
        )
        self.class_tower = self._make_tower()
        self.class_logits = predictor(conv_dim, num_classes, prior_prob=prior_prob)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config to the arguments of this class."""
        solo = cfg.MODEL.SOLO
        return {
            "in_features": solo.IN_FEATURES,
            "input_shape": input_shape,
            "strides": solo.STRIDES,
            "num_grids": solo.NUM_GRIDS,
            "num_classes": solo.NUM_CLASSES,
            "num_convs": solo.HEAD.NUM_CONVS,
            "conv_dim": solo.HEAD.CONV_DIM,
            "norm": solo.HEAD.NORM,
            "prior_prob": solo.HEAD.PRIOR_PROB,
            "align": solo.HEAD.ALIGN,
            "deform": solo.HEAD.DEFORM,
            "num_deform_convs": solo.HEAD.NUM_DEFORM_CONVS,
        }

    @abstractmethod
    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Predict raw logits from backbone features (B, C, H, W), in training and inference."""

    def masks(self, outputs: Outputs, image: int, cells: GridCells) -> Tensor:
        """Compute the masks of cells; see `MaskHead`. Heads without factors override this."""
        factors = self.mask_factors(outputs, image, cells)
        assert factors
        return multiply_factors([factor.of_image(image) for factor in factors])

    def mask_factors(
        self, outputs: Outputs, image: int | Tensor, cells: GridCells
    ) -> Sequence[MaskFactor] | None:
        """Return the factors of the masks if they are a product, else None; see `MaskHead`."""
        return None

    def class_branch(self, grid_feature: Tensor) -> Tensor:
        """Predict class logits (B, K, S, S) from the feature (B, C, S, S) of a level."""
        return self.class_logits(self.class_tower(grid_feature))

    def level_features(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Resize the feature of each level, (B, C, H, W), to the stride of the level.

        As published: P2 is halved, P6 is resized to the size of P5, the others are unchanged.
        """
        return [
            resize(features[name], self.size_at(stride, features))
            for name, stride in zip(self.in_features, self.strides, strict=True)
        ]

    def size_at(self, stride: int, features: dict[str, Tensor]) -> tuple[int, int]:
        """Return height and width of the padded input at a stride."""
        height, width = features[self.in_features[0]].shape[-2:]
        finest = self.feature_strides[0]
        return height * finest // stride, width * finest // stride


class LevelMasksHead(SOLOHeadBase[Outputs]):
    """Head that computes the masks of each level from maps of that level, at twice its size."""

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        num_grids: Sequence[int],
        num_coord_convs: int = 1,
        **class_branch: Any,
    ):
        """Create the head.

        Args:
            strides: stride of each level, even; see `SOLOHeadBase`.
            num_grids: grid side S of each level.
            num_coord_convs: number of convolutions at the start of a mask tower with coordinates.
            **class_branch: see `SOLOHeadBase`.
        """
        super().__init__(strides=strides, num_grids=num_grids, **class_branch)
        self.mask_strides = tuple(stride // 2 for stride in strides)
        self.mask_groups = tuple(range(len(num_grids)))
        self._make_mask_branch(num_coord_convs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config to arguments."""
        num_coord_convs = cfg.MODEL.SOLO.HEAD.NUM_COORD_CONVS
        return {**super().from_config(cfg, input_shape), "num_coord_convs": num_coord_convs}

    @abstractmethod
    def _make_mask_branch(self, num_coord_convs: int) -> None:
        """Create the layers of the mask branch."""

    def grid_logits(self, level_features: Sequence[Tensor]) -> list[Tensor]:
        """Predict class logits (B, K, S, S) of each level."""
        levels = zip(level_features, self.num_grids, strict=True)
        return [self.class_branch(self.align(x, (side, side))) for x, side in levels]

    def mask_sizes(self, features: dict[str, Tensor]) -> list[tuple[int, int]]:
        """Return height and width of the masks of each level."""
        return [self.size_at(stride, features) for stride in self.mask_strides]

    def cells_of_level(self, cells: GridCells) -> Tensor:
        """Return the indices of cells within their level, (P,) int64 in [0, S^2)."""
        return cells.index - sum(side * side for side in self.num_grids[: cells.group])


def has_mask_feature(name: str) -> bool:
    """Return whether a registered head (class or function) reads the keys of MASK_FEATURE."""
    return bool(getattr(SOLO_HEAD_REGISTRY.get(name), "has_mask_feature", False))


def build_solo_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> SOLOHeadBase:
    """Build the head of MODEL.SOLO.HEAD.NAME."""
    return SOLO_HEAD_REGISTRY.get(cfg.MODEL.SOLO.HEAD.NAME)(cfg, input_shape)


# Samples per cell in each direction: denser than the feature's pixels for up to 5 pixels per cell,
# which covers all published grids at 1333 pixels.
REGION_SAMPLES = 5


def resize_by_regions(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Average dense bilinear samples in each cell (SOLO, ablations: region-grid interpolation)."""
    height, width = (side * REGION_SAMPLES for side in size)
    samples = F.interpolate(feature, size=(height, width), mode="bilinear", align_corners=False)
    return F.avg_pool2d(samples, REGION_SAMPLES)


# How a feature (B, C, H, W) is resized to the grid (B, C, S, S).
ALIGNMENTS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "interpolate": resize,
    "max_pool": F.adaptive_max_pool2d,
    "region_grid": resize_by_regions,
}
