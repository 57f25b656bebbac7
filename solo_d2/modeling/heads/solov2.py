"""The head of SOLOv2 (arXiv:2003.10152, section 2.1): dynamic kernels on a unified mask feature.

B images, L levels, S grid side, T cells of all levels, K classes, P chosen cells, E channels of the
mask feature, D = side^2 * E kernel length, H W size of the mask feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, SOLOHeadBase, resize
from solo_d2.modeling.layers import conv_tower, predictor
from solo_d2.modeling.mask_features import MaskFeatureBranch
from solo_d2.ops.coords import append_coords
from solo_d2.ops.dynamic_conv import dynamic_conv
from solo_d2.structures import Cells, HeadOutputs, flatten_levels


@dataclass(frozen=True)
class SOLOv2Outputs(HeadOutputs):
    """Outputs of `SOLOv2Head`.

    Attributes:
        kernel_params: L tensors (B, D, S, S), no activation.
        mask_feature: (B, E, H, W), never negative.
    """

    kernel_params: list[Tensor]
    mask_feature: Tensor


@SOLO_HEAD_REGISTRY.register()
class SOLOv2Head(SOLOHeadBase[SOLOv2Outputs]):
    """Class and kernel towers, shared by all levels, and the unified mask feature."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        input_shape: dict[str, ShapeSpec],
        strides: Sequence[int],
        num_grids: Sequence[int],
        num_classes: int,
        num_convs: int = 4,
        conv_dim: int = 512,
        norm: str = "GN",
        prior_prob: float = 0.01,
        kernel_size: int = 1,
        kernel_coords: bool = True,
        mask_in_features: Sequence[str],
        mask_conv_dim: int = 128,
        mask_out_channels: int = 256,
        mask_coords: bool = True,
    ):
        """Make the head.

        Args:
            in_features: names of the backbone features, one for each level.
            input_shape: channels and stride of the backbone features.
            strides: stride at which the head sees each feature.
            num_grids: grid side S of each level.
            num_classes: K.
            num_convs: convolutions of each tower.
            conv_dim: their width.
            norm: norm of towers and mask feature, a name of Detectron2's.
            prior_prob: class probability at the start.
            kernel_size: side of the dynamic kernels, 1 or 3.
            kernel_coords: whether the kernel tower gets coordinates.
            mask_in_features: backbone features that the mask feature merges, finest first.
            mask_conv_dim: width of the mask feature's convolutions.
            mask_out_channels: E.
            mask_coords: whether the mask feature gets coordinates.
        """
        super().__init__(
            in_features=in_features,
            feature_strides=[input_shape[name].stride for name in in_features],
            strides=strides,
            num_grids=num_grids,
        )
        self.kernel_size = kernel_size
        self.kernel_coords = kernel_coords
        self.mask_in_features = tuple(mask_in_features)
        mask_shapes = [input_shape[name] for name in mask_in_features]
        self.mask_strides = (mask_shapes[0].stride,) * len(num_grids)

        channels = input_shape[in_features[0]].channels
        self.class_tower = conv_tower(channels, conv_dim, num_convs, norm=norm)
        self.kernel_tower = conv_tower(channels + 2 * kernel_coords, conv_dim, num_convs, norm=norm)
        self.class_logits = predictor(conv_dim, num_classes, prior_prob=prior_prob)
        self.kernel_params = predictor(conv_dim, kernel_size**2 * mask_out_channels)
        self.mask_feature = MaskFeatureBranch(
            in_channels=[shape.channels for shape in mask_shapes],
            strides=[shape.stride for shape in mask_shapes],
            conv_dim=mask_conv_dim,
            out_channels=mask_out_channels,
            norm=norm,
            coords=mask_coords,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config to arguments."""
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
            "kernel_size": solo.HEAD.KERNEL_SIZE,
            "kernel_coords": solo.HEAD.KERNEL_COORDS,
            "mask_in_features": solo.MASK_FEATURE.IN_FEATURES,
            "mask_conv_dim": solo.MASK_FEATURE.CONV_DIM,
            "mask_out_channels": solo.MASK_FEATURE.OUT_CHANNELS,
            "mask_coords": solo.MASK_FEATURE.COORDS,
        }

    def forward(self, features: dict[str, Tensor]) -> SOLOv2Outputs:
        """Predict class logits, kernels and the mask feature; see `SOLOHeadBase.forward`."""
        class_logits, kernel_params = [], []
        for feature, side in zip(self.level_features(features), self.num_grids, strict=True):
            grid_feature = append_coords(feature) if self.kernel_coords else feature
            grid_feature = resize(grid_feature, (side, side))
            kernel_params.append(self.kernel_params(self.kernel_tower(grid_feature)))
            # The class branch sees the same resized feature, without the coordinates.
            grid_feature = grid_feature[:, : feature.shape[1]]
            class_logits.append(self.class_logits(self.class_tower(grid_feature)))
        mask_feature = self.mask_feature([features[name] for name in self.mask_in_features])
        return SOLOv2Outputs(
            class_logits=class_logits,
            mask_size=tuple(mask_feature.shape[-2:]),
            kernel_params=kernel_params,
            mask_feature=mask_feature,
        )

    def cell_masks(self, outputs: SOLOv2Outputs, cells: Cells) -> Tensor:
        """Convolve the mask feature with the cells' kernels; see `SOLOHeadBase.cell_masks`."""
        kernels = self._cell_kernels(outputs, cells)
        return dynamic_conv(kernels, outputs.mask_feature[cells.image]).sigmoid_()

    def mask_product(self, outputs: SOLOv2Outputs, cells: Cells) -> tuple[Tensor, Tensor] | None:
        """The cells' kernels and the mask feature, for 1x1; see `SOLOHeadBase.mask_product`."""
        if self.kernel_size > 1:
            return None
        return self._cell_kernels(outputs, cells), outputs.mask_feature[cells.image]

    def _cell_kernels(self, outputs: SOLOv2Outputs, cells: Cells) -> Tensor:
        """The kernels (P, D) of chosen cells."""
        image = slice(cells.image, cells.image + 1)
        return flatten_levels([level[image] for level in outputs.kernel_params])[0][cells.index]
