"""What all heads share: the grid of each level, the class branch and its input."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from solo_d2.errors import ConfigError
from solo_d2.structures import Cells, HeadOutputs

Outputs = TypeVar("Outputs", bound=HeadOutputs)

SOLO_HEAD_REGISTRY = Registry("SOLO_HEAD")
SOLO_HEAD_REGISTRY.__doc__ = """
Heads: called with (cfg, input_shape), they return a `SOLOHeadBase`.
"""


class SOLOHeadBase(nn.Module, ABC, Generic[Outputs]):
    """A head predicts class logits for the cells of each level, and masks for chosen cells.

    Attributes:
        in_features: names of the backbone features, one for each level.
        feature_strides: their strides in input pixels.
        strides: stride at which the head sees each of them.
        num_grids: grid side S of each level.
        mask_strides: stride in input pixels of the masks of each level.
    """

    mask_strides: tuple[int, ...]

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        feature_strides: Sequence[int],
        strides: Sequence[int],
        num_grids: Sequence[int],
    ):
        super().__init__()
        self.in_features = tuple(in_features)
        self.feature_strides = tuple(feature_strides)
        self.strides = tuple(strides)
        self.num_grids = tuple(num_grids)

    @abstractmethod
    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Predict raw logits, the same in training and inference.

        Args:
            features: the backbone's, (B, C, H, W) each.

        Returns:
            The outputs of this head.
        """

    @abstractmethod
    def cell_masks(self, outputs: Outputs, cells: Cells) -> Tensor:
        """Make the masks of chosen cells.

        Args:
            outputs: what `forward` returned.
            cells: P cells of one image, of levels that share a mask stride; possibly none.

        Returns:
            (P, H, W) mask probabilities; (0, H, W), still connected to the outputs, for no cells.
        """

    def mask_product(self, outputs: Outputs, cells: Cells) -> tuple[Tensor, Tensor] | None:
        """The factors of the masks of chosen cells, for a head whose masks are a matrix product.

        Inference then never makes all pixels of all float masks at once.

        Args:
            outputs: what `forward` returned.
            cells: P cells of one image; possibly none.

        Returns:
            Kernels (P, E) and a feature (E, H, W), such that `cell_masks` is the sigmoid of their
            product; None for other heads.
        """
        return None

    def level_features(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The feature of each level, resized to the stride at which the head sees it.

        Published: P2 is halved, P6 brought to the size of P5, the others pass.

        Args:
            features: the backbone's, (B, C, H, W) each.

        Returns:
            L tensors (B, C, H / stride, W / stride), H and W of the padded input.
        """
        height, width = self.padded_size(features)
        return [
            resize(features[name], (height // stride, width // stride))
            for name, stride in zip(self.in_features, self.strides, strict=True)
        ]

    def padded_size(self, features: dict[str, Tensor]) -> tuple[int, int]:
        """Height and width of the padded input, from the finest feature and its stride."""
        height, width = features[self.in_features[0]].shape[-2:]
        return height * self.feature_strides[0], width * self.feature_strides[0]


def build_solo_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> SOLOHeadBase:
    """Make the head that `MODEL.SOLO.HEAD.NAME` names."""
    name = cfg.MODEL.SOLO.HEAD.NAME
    if name not in SOLO_HEAD_REGISTRY:
        known = ", ".join(sorted(key for key, _ in SOLO_HEAD_REGISTRY))
        raise ConfigError(f"MODEL.SOLO.HEAD.NAME is {name!r}: choose one of {known}")
    return SOLO_HEAD_REGISTRY.get(name)(cfg, input_shape)


def resize(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a feature (B, C, H, W) bilinearly to (B, C, *size)."""
    if tuple(feature.shape[-2:]) == tuple(size):
        return feature
    return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
