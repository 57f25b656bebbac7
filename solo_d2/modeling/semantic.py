"""The semantic branch of the panoptic model (SOLOv2, arXiv:2003.10152, section 3.2).

The paper only says "adding the semantic segmentation branch, analogue to the mask feature branch",
and its code was never released. The rest follows Panoptic FPN (arXiv:1901.02446): the stuff classes
and one class for all things, predicted by a 1x1 convolution at 1/4 scale, and a pixel-wise
cross-entropy at the input size.
"""

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
    """Predict the semantic label of each pixel by a 1x1 convolution of a feature.

    The feature is computed by `feature` from the backbone features `in_features`, finest first; if
    `feature` is None, it is the head's mask feature.

    Attributes:
        stride: stride of the feature and the prediction in input pixels.
    """

    def __init__(
        self,
        *,
        channels: int,
        stride: int,
        num_labels: int,
        in_features: tuple[str, ...] = (),
        feature: MaskFeatureBranch | None = None,
    ):
        """Create the branch; labels are the stuff classes and one for all things."""
        super().__init__()
        self.stride, self.in_features = stride, in_features
        self.feature = feature
        self.logits = predictor(channels, num_labels, kernel_size=1)

    def forward(self, features: dict[str, Tensor], outputs: HeadOutputs) -> Tensor:
        """Predict logits (B, C, H, W) at `stride`, with label 0 for all things."""
        if self.feature is None:
            return self.logits(cast(SOLOv2Outputs, outputs).mask_features[0])
        return self.logits(self.feature([features[name] for name in self.in_features]))


def build_semantic_branch(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], head: SOLOHeadBase
) -> SemanticBranch:
    """Build the branch of MODEL.SEM_SEG_HEAD, which `check_panoptic_config` has checked."""
    semantic = cfg.MODEL.SEM_SEG_HEAD
    if semantic.SHARE_MASK_FEATURE:
        return SemanticBranch(
            channels=cfg.MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS,
            stride=head.mask_strides[0],
            num_labels=semantic.NUM_CLASSES,
        )
    shapes = [input_shape[name] for name in semantic.IN_FEATURES]
    feature = MaskFeatureBranch(
        in_channels=[shape.channels for shape in shapes],
        strides=[shape.stride for shape in shapes],
        conv_dim=semantic.CONVS_DIM,
        out_channels=semantic.CONVS_DIM,
        norm=semantic.NORM,
        coords=semantic.COORDS,
    )
    return SemanticBranch(
        channels=semantic.CONVS_DIM,
        stride=shapes[0].stride,
        num_labels=semantic.NUM_CLASSES,
        in_features=tuple(semantic.IN_FEATURES),
        feature=feature,
    )
