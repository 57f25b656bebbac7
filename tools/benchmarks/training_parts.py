"""Parts of a training step by themselves: target assignment, and the mask loss with its gradients.

B images, N instances, P positive cells, D kernel length, H W rows and columns of a mask.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_d2.losses import mask_loss_sum
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.structures import GridTargets
from solo_d2.targets import assign_grid_targets
from tools.benchmarks.common import measure, peak_memory
from tools.benchmarks.head_outputs import NUM_GRIDS, KernelHead, KernelOutputs
from tools.benchmarks.plain_training import PlainTargets, plain_mask_loss, plain_targets
from tools.benchmarks.scenes import make_scene

# Published settings of the 800 pixel models.
SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
MASK_STRIDE, NUM_CLASSES, CHANNELS = 4, 80, 256

Instances = tuple[list[Tensor], list[Tensor], list[Tensor]]


def draw_instances(
    num_images: int, num: int, size: tuple[int, int], device: torch.device, seed: int
) -> Instances:
    """Boxes, classes and masks of the instances of some images.

    Args:
        num_images: B.
        num: instances of each image.
        size: height and width of the images.
        device: where they lie.
        seed: of the random numbers.
    """
    boxes, classes, masks = [], [], []
    for image in range(num_images):
        of_image, labels, _ = make_scene(num, size, NUM_CLASSES, seed + image, distinct=True)
        boxes.append(mask_boxes(of_image).to(device))
        classes.append(labels.to(device))
        masks.append(of_image.to(device))
    return boxes, classes, masks


def assignment(
    size: tuple[int, int],
) -> tuple[Callable[..., GridTargets], Callable[..., PlainTargets]]:
    """Ours and the plain function, called with boxes, classes and masks."""
    settings: dict[str, Any] = {
        "padded_size": size,
        "num_grids": NUM_GRIDS,
        "scale_ranges": SCALE_RANGES,
        "mask_strides": (MASK_STRIDE,) * len(NUM_GRIDS),
        "num_classes": NUM_CLASSES,
    }
    return partial(assign_grid_targets, **settings), partial(plain_targets, **settings)


def run_targets(args: argparse.Namespace) -> dict[str, Any]:
    """Target assignment of `args.images` images with `args.instances` instances each."""
    instances = draw_instances(args.images, args.instances, args.size, args.device, args.seed)
    assign_ours, assign_plain = assignment(args.size)
    ours, plain = partial(assign_ours, *instances), partial(assign_plain, *instances)
    result = _compare({"ours": ours, "plain": plain}, args)
    return {
        "case": "targets",
        "images": args.images,
        "instances": args.instances,
        "size": list(args.size),
        "samples": len(ours().cells),
        "difference": 0.0 if same_targets(ours(), plain()) else 1.0,
        **result,
    }


def same_targets(ours: GridTargets, plain: PlainTargets) -> bool:
    """Whether classes, samples and their masks are the same."""
    cells = torch.cat([cells for levels in plain.cells for cells in levels])
    if not torch.equal(ours.classes, plain.classes) or not torch.equal(ours.cells, cells):
        return False
    masks, first = ours.masks[MASK_STRIDE], 0
    for levels in plain.masks:
        for expected in levels:
            found = masks[ours.instances[first : first + len(expected)]]
            if not torch.equal(found, expected.bool()):
                return False
            first += len(expected)
    return True


def run_mask_loss(args: argparse.Namespace, num_images: int, num: int) -> dict[str, Any]:
    """Mask loss with gradients of kernels and mask feature, from random ones.

    Args:
        args: of the command.
        num_images: B.
        num: instances of each image.
    """
    instances = draw_instances(num_images, num, args.size, args.device, args.seed)
    assign_ours, assign_plain = assignment(args.size)
    ours_targets, plain = assign_ours(*instances), assign_plain(*instances)
    del instances
    outputs = _random_outputs(num_images, args.size, args.device, args.seed)
    head = KernelHead([MASK_STRIDE] * len(NUM_GRIDS))
    inputs = [*outputs.kernel_params, outputs.mask_feature]

    def with_gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16):
            value = loss()
        return value.detach(), *torch.autograd.grad(value, inputs)

    functions = {
        "ours": partial(
            with_gradients,
            partial(mask_loss_sum, outputs, ours_targets, head=head, memory_mib=args.memory_mib),
        ),
        "plain": partial(with_gradients, partial(plain_mask_loss, outputs, plain, head=head)),
    }
    differences = [
        float((a - b).norm() / b.norm())
        for a, b in zip(functions["ours"](), functions["plain"](), strict=True)
    ]
    return {
        "case": "mask loss",
        "images": num_images,
        "instances": num,
        "size": list(args.size),
        "samples": len(ours_targets.cells),
        "difference": max(differences),
        **_compare(functions, args),
    }


def _random_outputs(
    num_images: int, size: tuple[int, int], device: torch.device, seed: int
) -> KernelOutputs:
    """Kernels and a mask feature as from a head at the start of training, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, CHANNELS, size[0] // MASK_STRIDE, size[1] // MASK_STRIDE)
    feature = torch.randn(shape, generator=generator).relu_().to(device).requires_grad_()
    kernels = [
        (0.05 * torch.randn(num_images, CHANNELS, side, side, generator=generator))
        .to(device)
        .requires_grad_()
        for side in NUM_GRIDS
    ]
    return KernelOutputs([], shape[2:], kernels, feature)


def _compare(
    functions: Mapping[str, Callable[[], Any]], args: argparse.Namespace
) -> dict[str, Any]:
    """Time functions in turns and find their peak memory."""
    timings = measure(functions, args.device, repeats=args.repeats, budget=args.budget)
    return {
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "speedup": timings["plain"].median / timings["ours"].median,
        "peak_bytes": {
            name: peak_memory(function, args.device) for name, function in functions.items()
        },
    }
