"""The head of SOLOv2 (arXiv:2003.10152, section 2.1): dynamic kernels on a mask feature.

B images, L levels, S grid side, T cells of all levels, K classes, P selected cells, E channels of
the mask feature, D = side^2 * E kernel length, H W size of the mask feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY, SOLOHeadBase
from solo_d2.modeling.layers import predictor
from solo_d2.modeling.mask_features import MaskFeatureBranch, SeparateMaskFeatures
from solo_d2.ops.coords import coord_maps
from solo_d2.ops.mask_factors import MaskFactor
from solo_d2.structures import GridCells, HeadOutputs, take_cells

MASK_FEATURE_TYPES = ("unified", "separate")


@dataclass(frozen=True)
class SOLOv2Outputs(HeadOutputs):
    """Outputs of `SOLOv2Head`.

    Attributes:
        kernel_params: L tensors (B, D, S, S), no activation.
        mask_features: (B, E, H, W), non-negative: one if it is unified, else one per level.
    """

    kernel_params: list[Tensor]
    mask_features: list[Tensor]


@SOLO_HEAD_REGISTRY.register()
class SOLOv2Head(SOLOHeadBase[SOLOv2Outputs]):
    """Class and kernel towers, shared by all levels, and the mask feature."""

    has_mask_feature: ClassVar[bool] = True

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        strides: Sequence[int],
        num_grids: Sequence[int],
        kernel_size: int = 1,
        kernel_coords: bool = True,
        mask_feature_type: str = "unified",
        mask_in_features: Sequence[str] = (),
        mask_num_convs: int = 7,
        mask_conv_dim: int = 128,
        mask_out_channels: int = 256,
        mask_coords: bool = True,
        mask_deform: str = "",
        norm: str = "GN",
        **class_branch: Any,
    ):
        """Create the head.

        Args:
            input_shape: channels and stride of the backbone features.
            strides: stride of each level, see `SOLOHeadBase`.
            num_grids: grid side S of each level.
            kernel_size: side of the dynamic kernels, 1 or 3.
            kernel_coords: whether the kernel tower gets coordinates.
            mask_feature_type: "unified", or "separate" for each level.
            mask_in_features: backbone features to merge if unified, finest first.
            mask_num_convs: number of convolutions of the mask tower if separate.
            mask_conv_dim: channels of the mask feature's convolutions.
            mask_out_channels: E.
            mask_coords: whether the mask feature gets coordinates.
            mask_deform: kind of deformable convolution in the mask feature, or "".
            norm: norm of all convolutions, a name of Detectron2's.
            **class_branch: see `SOLOHeadBase`.
        """
        super().__init__(
            input_shape=input_shape, strides=strides, num_grids=num_grids, norm=norm, **class_branch
        )
        self.kernel_size = kernel_size
        self.kernel_coords = kernel_coords
        self.mask_in_features = tuple(mask_in_features)
        self.kernel_tower = self._make_tower(in_channels=self.in_channels + 2 * kernel_coords)
        self.kernel_params = predictor(self.conv_dim, kernel_size**2 * mask_out_channels)
        settings: dict[str, Any] = {
            "conv_dim": mask_conv_dim,
            "out_channels": mask_out_channels,
            "norm": norm,
            "coords": mask_coords,
            "deform": mask_deform,
        }
        self.is_unified = mask_feature_type == "unified"
        self.mask_feature: MaskFeatureBranch | SeparateMaskFeatures
        if self.is_unified:
            shapes = [input_shape[name] for name in mask_in_features]
            self.mask_strides = (shapes[0].stride,) * len(num_grids)
            self.mask_groups = (0,) * len(num_grids)
            self.mask_feature = MaskFeatureBranch(
                in_channels=[shape.channels for shape in shapes],
                strides=[shape.stride for shape in shapes],
                **settings,
            )
        else:
            self.mask_strides = tuple(stride // 2 for stride in strides)
            self.mask_groups = tuple(range(len(num_grids)))
            self.mask_feature = SeparateMaskFeatures(
                in_channels=self.in_channels, num_convs=mask_num_convs, **settings
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config to arguments."""
        head, mask_feature = cfg.MODEL.SOLO.HEAD, cfg.MODEL.SOLO.MASK_FEATURE
        return {
            **super().from_config(cfg, input_shape),
            "kernel_size": head.KERNEL_SIZE,
            "kernel_coords": head.KERNEL_COORDS,
            "mask_feature_type": mask_feature.TYPE,
            "mask_in_features": mask_feature.IN_FEATURES,
            "mask_num_convs": mask_feature.NUM_CONVS,
            "mask_conv_dim": mask_feature.CONV_DIM,
            "mask_out_channels": mask_feature.OUT_CHANNELS,
            "mask_coords": mask_feature.COORDS,
            "mask_deform": mask_feature.DEFORM,
        }

    def forward(self, features: dict[str, Tensor]) -> SOLOv2Outputs:
        """Predict class logits, kernels and the mask feature; see `SOLOHeadBase.forward`."""
        class_logits, kernel_params = [], []
        level_features = self.level_features(features)
        if self.is_unified:
            inputs = [[features[name] for name in self.mask_in_features]]
        else:
            inputs = level_features
        # First, so that its gradients come last, when those of the towers have freed their memory.
        mask_features = [self.mask_feature(x) for x in inputs]
        for feature, side in zip(level_features, self.num_grids, strict=True):
            # Alignment is independent for each channel, so the coordinates are aligned separately.
            grid_feature = self.align(feature, (side, side))
            class_logits.append(self.class_branch(grid_feature))
            if self.kernel_coords:
                coords = self.align(coord_maps(feature), (side, side))
                grid_feature = torch.cat([grid_feature, coords], dim=1)
            kernel_params.append(self.kernel_params(self.kernel_tower(grid_feature)))
        finest = self.mask_groups[self.mask_strides.index(min(self.mask_strides))]
        return SOLOv2Outputs(
            class_logits=class_logits,
            mask_size=tuple(mask_features[finest].shape[-2:]),
            kernel_params=kernel_params,
            mask_features=mask_features,
        )

    def mask_factors(
        self, outputs: SOLOv2Outputs, image: int | Tensor, cells: GridCells
    ) -> Sequence[MaskFactor]:
        """Return the kernels of the cells on the mask feature (equation 1)."""
        # Levels without cells have zero gradients, which need not be computed.
        kernel_params = [
            level if not cells.levels or i in cells.levels else level.detach()
            for i, level in enumerate(outputs.kernel_params)
        ]
        kernels = take_cells(kernel_params, image, cells.index)
        return (MaskFactor(outputs.mask_features[cells.group], kernels),)
