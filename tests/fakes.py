"""Stand-ins that need neither Detectron2 nor weights."""

from dataclasses import dataclass

from torch import Tensor

from solo_d2.ops.dynamic_conv import dynamic_conv
from solo_d2.structures import Cells, HeadOutputs, flatten_levels


@dataclass(frozen=True)
class KernelOutputs(HeadOutputs):
    """What SOLOv2's head gives, without the head."""

    kernel_params: list[Tensor]
    mask_feature: Tensor


def kernel_outputs(class_logits, kernel_params, mask_feature):
    size = tuple(mask_feature.shape[-2:])
    return KernelOutputs(class_logits, size, kernel_params, mask_feature)


def kernel_masks(outputs: KernelOutputs, cells: Cells) -> Tensor:
    """The masks of SOLOv2 by definition."""
    kernels = flatten_levels(outputs.kernel_params)[cells.image, cells.index]
    return dynamic_conv(kernels, outputs.mask_feature[cells.image]).sigmoid()


def kernel_product(outputs: KernelOutputs, cells: Cells) -> tuple[Tensor, Tensor]:
    """The factors of `kernel_masks`, for 1x1 kernels."""
    kernels = flatten_levels(outputs.kernel_params)[cells.image, cells.index]
    return kernels, outputs.mask_feature[cells.image]
