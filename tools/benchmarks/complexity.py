"""Parameters and multiply-adds of configs.

Tensors are on torch's "meta" device, so nothing is computed. An image of 480x640 is resized to
INPUT.MIN_SIZE_TEST and padded. Counted are the multiply-adds of convolutions (deformable ones with
their offset convolution) and matrix products in backbone, head and semantic branch; not counted are
norms, activations, resizes, the bilinear sampling of deformable convolutions, and what depends on
the image content, such as SOLOv2's dynamic convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data.transforms import ResizeShortestEdge
from torch.utils.flop_counter import FlopCounterMode

from solo_d2.engine import Trainer

IMAGE_SIZE = (480, 640)


@dataclass(frozen=True)
class Complexity:
    """Size of a model."""

    parameters: int  # with frozen ones; without the constants of a frozen BatchNorm
    multiply_adds: int  # per image
    input_size: tuple[int, int]  # padded


def count_multiply_adds(function: Callable[..., Any], *inputs: Any) -> int:
    """Count multiply-adds of convolutions and matrix products in one call, without gradients.

    Does not support GPUs: torch does not count their deformable convolution, a single operator.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops() // 2  # torch counts multiplication and addition


def measure(cfg: Any) -> Complexity:
    """Build the model of a config on the meta device and count."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    model = Trainer.build_model(cfg).eval()
    divisor = max(1, model.backbone.size_divisibility)
    height, width = (-(-side // divisor) * divisor for side in input_size(cfg))
    images = torch.empty(1, 3, height, width, device="meta")
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=count_multiply_adds(model.network, images),
        input_size=(height, width),
    )


def input_size(cfg: Any) -> tuple[int, int]:
    """Return height and width of an `IMAGE_SIZE` image resized for testing, before padding."""
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if short == 0:  # images stay as they are
        return IMAGE_SIZE
    height, width = ResizeShortestEdge.get_output_shape(*IMAGE_SIZE, short, longest)
    return height, width
