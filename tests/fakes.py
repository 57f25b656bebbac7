"""Stand-ins that need neither Detectron2 nor weights."""

from torch import Tensor

from solo_d2.structures import GridCells, flatten_levels
from tools.benchmarks.head_outputs import KernelHead, KernelOutputs

_HEAD = KernelHead([4])


def kernel_outputs(class_logits, kernel_params, mask_feature):
    size = tuple(mask_feature.shape[-2:])
    return KernelOutputs(class_logits, size, kernel_params, mask_feature)


def kernel_masks(outputs: KernelOutputs, cells: GridCells) -> Tensor:
    """The masks of SOLOv2 by definition."""
    maps = [x[cells.image] for x in _HEAD.mask_maps(outputs, cells.group)]
    return _HEAD.make_masks(maps, _HEAD.mask_params(outputs, cells))


def kernel_product(outputs: KernelOutputs, cells: GridCells) -> tuple[Tensor, Tensor]:
    """The factors of `kernel_masks`, for 1x1 kernels."""
    kernels = flatten_levels(outputs.kernel_params)[cells.image, cells.index]
    return kernels, outputs.mask_feature[cells.image]
