"""Compare a training step with target assignment and losses in plain loops.

Both are timed alternately on the same batches and model. Four tables:

- step: stages of a step of the config's model with random weights. One process reads, augments and
  maps a batch of generated images with --instances objects, or of DATASETS.TRAIN (--dataset), at
  the largest of INPUT.MIN_SIZE_TRAIN. SOLVER sets mixed precision, channels_last and torch.compile.
- targets: target assignment of --images images of --size.
- loss: the mask loss of SOLOv2 with the gradients of kernels and mask feature, for --batch images.
- dense: the same for one image with --dense objects.

"plain" assigns instance by instance on the host and computes all masks and float targets of an
image and level at once, as published code does.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_d2.losses import mask_loss_sum
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.structures import GridTargets
from solo_d2.targets import assign_grid_targets
from tools.benchmarks.common import (
    add_common_arguments,
    begin,
    compare,
    markdown_table,
    parse_size,
    save,
    stage_table,
    table_row,
)
from tools.benchmarks.head_outputs import NUM_GRIDS, KernelHead, KernelOutputs
from tools.benchmarks.plain_training import PlainTargets, plain_mask_loss, plain_targets
from tools.benchmarks.scenes import make_scene
from tools.benchmarks.training_step import StepBenchmark

PARTS = ("step", "targets", "loss", "dense")
# Published settings of the 800 pixel models.
SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
MASK_STRIDE, NUM_CLASSES, CHANNELS = 4, 80, 256

Instances = tuple[list[Tensor], list[Tensor], list[Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py train`."""
    add = parser.add_argument
    add("--config-file", help="model config for the step")
    add("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    add("--batch", type=int, default=2, help="batch size of a step (%(default)s)")
    add("--instances", type=int, default=30, help="objects per image (%(default)s)")
    add("--image-size", type=parse_size, default=(480, 640),
        help="of the generated images of the step, before resizing (480x640)")  # fmt: skip
    add("--dataset", action="store_true", help="use images of DATASETS.TRAIN")
    add("--images", type=int, default=16, help="images for the targets (%(default)s)")
    add(
        "--size",
        type=parse_size,
        default=(800, 1216),
        help="of images, except for the step (800x1216)",
    )
    add("--dense", type=int, default=300, help="objects (%(default)s)")
    add_common_arguments(parser)
    add("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")


def run(args: argparse.Namespace) -> None:
    """Measure the selected parts, print the tables, save the results."""
    step = StepBenchmark(args) if "step" in args.parts else None  # checks the config first
    machine = begin(args)
    print("\nmilliseconds: median (interquartile range); MiB: peak beyond the inputs")
    results: dict[str, Any] = {}
    if step is not None:
        found = results["step"] = step.run()
        print(
            f"\n{found['config_file']}: {found['batch']} images of {found['input_size']}, "
            f"{found['samples']} mask samples, {found['precision']}; losses differ by "
            f"{found['difference']:.1g}\n\n{stage_table(found['stages'])}\n"
        )
        print(stage_table(found["pipelines"]))
    if "targets" in args.parts:
        results["targets"] = run_targets(args)
    if "loss" in args.parts:
        results["loss"] = run_mask_loss(args, args.batch, args.instances)
    if "dense" in args.parts:
        results["dense"] = run_mask_loss(args, 1, args.dense)
    rows = [table_row(result) for name, result in results.items() if name != "step"]
    print(f"\n{markdown_table(rows)}")
    save(args, {"machine": machine, "results": results})


def draw_instances(args: argparse.Namespace, num_images: int, num: int) -> Instances:
    """Generate boxes, classes and masks of `num` instances in each image."""
    scenes = [
        make_scene(num, args.size, NUM_CLASSES, args.seed + image, distinct=True)
        for image in range(num_images)
    ]
    return (
        [mask_boxes(masks).to(args.device) for masks, _, _ in scenes],
        [labels.to(args.device) for _, labels, _ in scenes],
        [masks.to(args.device) for masks, _, _ in scenes],
    )


def assignment(
    size: tuple[int, int],
) -> tuple[Callable[..., GridTargets], Callable[..., PlainTargets]]:
    """Return our and the plain function of boxes, classes and masks."""
    settings: dict[str, Any] = {
        "padded_size": size,
        "num_grids": NUM_GRIDS,
        "scale_ranges": SCALE_RANGES,
        "mask_strides": (MASK_STRIDE,) * len(NUM_GRIDS),
        "num_classes": NUM_CLASSES,
    }
    return partial(assign_grid_targets, **settings), partial(plain_targets, **settings)


def run_targets(args: argparse.Namespace) -> dict[str, Any]:
    """Measure target assignment of `args.images` images with `args.instances` instances."""
    instances = draw_instances(args, args.images, args.instances)
    assign_ours, assign_plain = assignment(args.size)
    ours, plain = partial(assign_ours, *instances), partial(assign_plain, *instances)
    return {
        "case": "targets",
        "images": args.images,
        "instances": args.instances,
        "size": list(args.size),
        "samples": len(ours().cells),
        "difference": 0.0 if same_targets(ours(), plain()) else 1.0,
        **compare({"ours": ours, "plain": plain}, args),
    }


def same_targets(ours: GridTargets, plain: PlainTargets) -> bool:
    """Return whether classes, samples and their masks are equal."""
    cells = torch.cat([cells for levels in plain.cells for cells in levels])
    masks = torch.cat([masks for levels in plain.masks for masks in levels])
    return (
        torch.equal(ours.classes, plain.classes)
        and torch.equal(ours.cells, cells)
        and torch.equal(ours.masks[MASK_STRIDE][ours.instances], masks.bool())
    )


def run_mask_loss(args: argparse.Namespace, num_images: int, num: int) -> dict[str, Any]:
    """Measure the mask loss with gradients for `num` instances per image."""
    instances = draw_instances(args, num_images, num)
    assign_ours, assign_plain = assignment(args.size)
    targets, plain = assign_ours(*instances), assign_plain(*instances)
    outputs = _random_outputs(args, num_images)
    head = KernelHead([MASK_STRIDE] * len(NUM_GRIDS))
    inputs = [*outputs.kernel_params, outputs.mask_feature]

    def with_gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, inputs)

    ours = partial(mask_loss_sum, outputs, targets, head=head)
    functions = {
        "ours": partial(with_gradients, ours),
        "plain": partial(with_gradients, partial(plain_mask_loss, outputs, plain, head=head)),
    }
    found = zip(functions["ours"](), functions["plain"](), strict=True)
    return {
        "case": "mask loss",
        "images": num_images,
        "instances": num,
        "size": list(args.size),
        "samples": len(targets.cells),
        "difference": max(float((a - b).norm() / b.norm()) for a, b in found),
        **compare(functions, args),
    }


def _random_outputs(args: argparse.Namespace, num_images: int) -> KernelOutputs:
    generator = torch.Generator().manual_seed(args.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(num_images, CHANNELS, *shape, generator=generator)

    size = args.size[0] // MASK_STRIDE, args.size[1] // MASK_STRIDE
    feature = draw(*size).relu_().to(args.device).requires_grad_()
    kernels = [(0.05 * draw(s, s)).to(args.device).requires_grad_() for s in NUM_GRIDS]
    return KernelOutputs([], size, kernels, feature)
