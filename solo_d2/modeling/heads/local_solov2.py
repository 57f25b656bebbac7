"""SOLOv2 for many small objects: each cell's mask is limited to the surroundings of the cell.

SOLOv2 (arXiv:2003.10152) learns the extent of masks from coordinates. With a hundred objects of a
few pixels this takes long, and masks include neighbors. Here the logit of a cell's mask at distance
d from the cell's center is lowered by sharpness * d^2, with a predicted sharpness. This quadratic
function of the pixel is a product of four additional kernel parameters and channels of the mask
feature; everything else is unchanged. This is not in the paper.
"""

from dataclasses import replace
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from solo_d2.modeling.heads.base import SOLO_HEAD_REGISTRY
from solo_d2.modeling.heads.solov2 import SOLOv2Head, SOLOv2Outputs
from solo_d2.modeling.layers import predictor
from solo_d2.ops.coords import coord_maps
from solo_d2.utils.errors import ConfigError

# Pixels of the mask feature per unit of distance, and the raw sharpness at the start: softplus(-2)
# lowers logits by 0.13 at a distance of one unit.
_UNIT, _START = 4.0, -2.0


@SOLO_HEAD_REGISTRY.register()
class LocalSOLOv2Head(SOLOv2Head):
    """`SOLOv2Head` with masks that are limited to the surroundings of their cell.

    Requires float32, since the terms of the squared distance cancel out.
    """

    @configurable
    def __init__(
        self,
        *,
        kernel_size: int = 1,
        mask_feature_type: str = "unified",
        mask_out_channels: int = 256,
        **others: Any,
    ):
        """Create the head; see `SOLOv2Head`.

        Raises:
            ConfigError: `kernel_size` is not 1, or `mask_feature_type` not "unified".
        """
        if kernel_size != 1 or mask_feature_type != "unified":
            raise ConfigError(
                "LocalSOLOv2Head needs MODEL.SOLO.HEAD.KERNEL_SIZE 1 and "
                "MODEL.SOLO.MASK_FEATURE.TYPE 'unified', not "
                f"{kernel_size} and {mask_feature_type!r}"
            )
        super().__init__(mask_out_channels=mask_out_channels, **others)
        self.kernel_params = predictor(self.conv_dim, mask_out_channels + 1)
        torch.nn.init.constant_(self.kernel_params.bias[-1:], _START)

    def forward(self, features: dict[str, Tensor]) -> SOLOv2Outputs:
        """Predict like `SOLOv2Head`; kernels and mask feature have four more channels."""
        outputs = super().forward(features)
        feature = outputs.mask_features[0]
        scale = [0.5 * size / _UNIT for size in (feature.shape[-1], feature.shape[-2])]
        maps = coord_maps(feature)
        position = torch.cat([scale[0] * maps[:, :1], scale[1] * maps[:, 1:]], dim=1)
        square = position.square().sum(dim=1, keepdim=True)
        mask_feature = torch.cat([feature, position, square, torch.ones_like(square)], dim=1)
        kernels = [_append_distance(level, position) for level in outputs.kernel_params]
        return replace(outputs, kernel_params=kernels, mask_features=[mask_feature])


def _append_distance(params: Tensor, position: Tensor) -> Tensor:
    """Replace the raw sharpness, the last channel of (B, D + 1, S, S), by four kernel parameters.

    Applied to channels x, y, x^2 + y^2 and 1 they give -sharpness * d^2. `position` (B, 2, H, W)
    contains pixel positions; interpolated to (S, S), those of cell centers.
    """
    kernels, sharpness = params[:, :-1], F.softplus(params[:, -1:])
    center = F.interpolate(position, params.shape[-2:], mode="bilinear", align_corners=False)
    square = center.square().sum(dim=1, keepdim=True)
    return torch.cat([kernels, 2 * sharpness * center, -sharpness, -sharpness * square], dim=1)
