"""The semantic branch of the panoptic model (SOLOv2, arXiv:2003.10152, section 3.2).

"Adding the semantic segmentation branch, analogue to the mask feature branch" is all that the paper
says, and its code was never released. What it leaves open follows Panoptic FPN (arXiv:1901.02446):
the stuff classes and one class for all things, predicted by a 1x1 convolution at 1/4 scale, and a
cross-entropy of pixels at the size of the input.
"""

from collections.abc import Sequence
from typing import cast

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from solo_d2.modeling.heads import SOLOHeadBase
from solo_d2.modeling.heads.solov2 import SOLOv2Outputs
from solo_d2.modeling.layers import predictor
from solo_d2.modeling.mask_features import MaskFeatureBranch
from solo_d2.structures import HeadOutputs


class SemanticBranch(nn.Module):
    """Predicts the semantic label of each pixel from the backbone's features.

    Attributes:
        in_features: names of the features, finest first.
        stride: stride in input pixels of the prediction.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        input_shape: dict[str, ShapeSpec],
        num_labels: int,
        conv_dim: int = 128,
        norm: str = "GN",
        coords: bool = True,
    ):
        """Make the branch.

        Args:
            in_features: names of the features, finest first, the stride doubling from each to the
                next.
            input_shape: channels and stride of the backbone's features.
            num_labels: stuff classes, and one for all things.
            conv_dim: width of all convolutions but the last.
            norm: a norm of Detectron2.
            coords: whether the coarsest feature gets coordinates.
        """
        super().__init__()
        shapes = [input_shape[name] for name in in_features]
        self.in_features = tuple(in_features)
        self.stride: int = shapes[0].stride
        self.feature = MaskFeatureBranch(
            in_channels=[shape.channels for shape in shapes],
            strides=[shape.stride for shape in shapes],
            conv_dim=conv_dim,
            out_channels=conv_dim,
            norm=norm,
            coords=coords,
        )
        self.logits = predictor(conv_dim, num_labels, kernel_size=1)

    def forward(self, features: dict[str, Tensor], outputs: HeadOutputs) -> Tensor:
        """Predict logits.

        Args:
            features: the backbone's, (B, E, H, W) each.
            outputs: the head's; not used here.

        Returns:
            (B, C, H, W) at `stride`, label 0 for all things.
        """
        return self.logits(self.feature([features[name] for name in self.in_features]))


class SharedSemanticBranch(nn.Module):
    """Predicts the semantic label of each pixel from the head's mask feature.

    Attributes:
        stride: stride in input pixels of the prediction.
    """

    def __init__(self, *, channels: int, stride: int, num_labels: int):
        """Make the branch.

        Args:
            channels: E, of the mask feature.
            stride: of the mask feature.
            num_labels: stuff classes, and one for all things.
        """
        super().__init__()
        self.stride = stride
        self.logits = predictor(channels, num_labels, kernel_size=1)

    def forward(self, features: dict[str, Tensor], outputs: HeadOutputs) -> Tensor:
        """Predict logits from `outputs`; see `SemanticBranch.forward`."""
        return self.logits(cast(SOLOv2Outputs, outputs).mask_features[0])


def build_semantic_branch(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], head: SOLOHeadBase
) -> SemanticBranch | SharedSemanticBranch:
    """Make the branch that MODEL.SEM_SEG_HEAD describes.

    Args:
        cfg: checked by `check_panoptic_config`.
        input_shape: channels and stride of the backbone's features.
        head: whose mask feature may be shared.
    """
    semantic = cfg.MODEL.SEM_SEG_HEAD
    if semantic.SHARE_MASK_FEATURE:
        return SharedSemanticBranch(
            channels=cfg.MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS,
            stride=head.mask_strides[0],
            num_labels=semantic.NUM_CLASSES,
        )
    return SemanticBranch(
        in_features=semantic.IN_FEATURES,
        input_shape=input_shape,
        num_labels=semantic.NUM_CLASSES,
        conv_dim=semantic.CONVS_DIM,
        norm=semantic.NORM,
        coords=semantic.COORDS,
    )
