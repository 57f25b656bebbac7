"""A training step beside the same step with target assignment and losses in plain loops.

One run measures both in turns, on the same batches and model. Four tables:

- step: the stages of a step of the config's model, with random weights. A batch is read, augmented
  and mapped by this process, from drawn images with --instances objects or (--dataset) from
  DATASETS.TRAIN, at the largest of INPUT.MIN_SIZE_TRAIN. Mixed precision, channels_last and
  torch.compile are as SOLVER says.
- targets: target assignment alone, of --images images of --size.
- loss: the mask loss of SOLOv2 with the gradients of kernels and mask feature, for --batch images.
- dense: the same of one image with --dense objects.

"plain" assigns instance by instance on the host, and makes all masks and float targets of an image
and level at once, as published code does.
"""

import argparse
from typing import Any

import torch

from solo_d2.utils.files import save_json
from tools.benchmarks.common import Timing, add_common_arguments, describe_machine, markdown_table
from tools.benchmarks.nms import parse_size

MIB = 1 << 20
PARTS = ("step", "targets", "loss", "dense")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py train`."""
    parser.add_argument("--config-file", help="of the model, for the step")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--batch", type=int, default=2, help="images of a step (%(default)s)")
    parser.add_argument(
        "--instances", type=int, default=30, help="objects of an image (%(default)s)"
    )
    parser.add_argument(
        "--image-size",
        type=parse_size,
        default=(480, 640),
        help="of the drawn images of the step, before they are scaled (480x640)",
    )
    parser.add_argument("--dataset", action="store_true", help="take images of DATASETS.TRAIN")
    parser.add_argument("--images", type=int, default=16, help="for the targets (%(default)s)")
    parser.add_argument(
        "--size", type=parse_size, default=(800, 1216), help="of all but the step (800x1216)"
    )
    parser.add_argument("--dense", type=int, default=300, help="objects (%(default)s)")
    parser.add_argument("--bfloat16", action="store_true", help="autocast of loss and dense")
    parser.add_argument(
        "--memory-mib", type=int, default=64, help="as MODEL.SOLO.LOSS.MEMORY_MIB (%(default)s)"
    )
    add_common_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="changes of the config: KEY VALUE ..."
    )


def run(args: argparse.Namespace) -> None:
    """Measure what was asked for, print the tables, save the results."""
    # Imported here, as options are listed where Detectron2 is missing too.
    from tools.benchmarks.training_parts import run_mask_loss, run_targets
    from tools.benchmarks.training_step import StepBenchmark

    if args.threads:
        torch.set_num_threads(args.threads)
    step = StepBenchmark(args) if "step" in args.parts else None  # refuses a bad config first
    machine = describe_machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print("\nmilliseconds: median (a tenth below - a tenth above); MiB: peak beyond what was there")
    results: dict[str, Any] = {}
    if step is not None:
        results["step"] = step.run()
        _print_step(results["step"])
    if "targets" in args.parts:
        results["targets"] = run_targets(args)
    if "loss" in args.parts:
        results["loss"] = run_mask_loss(args, args.batch, args.instances)
    if "dense" in args.parts:
        results["dense"] = run_mask_loss(args, 1, args.dense)
    rows = [_part_row(result) for name, result in results.items() if name != "step"]
    print(f"\n{markdown_table(rows)}")
    if args.output:
        save_json(args.output, {"machine": machine, "results": results})


def _print_step(result: dict[str, Any]) -> None:
    ours, plain = (result["pipelines"][name] for name in ("ours", "plain"))
    rows = [
        {
            "stage": stage,
            "ours ms": str(Timing(**ours["milliseconds"][stage])),
            "plain ms": str(Timing(**plain["milliseconds"][stage])),
            "speed-up": _ratio(
                plain["milliseconds"][stage]["median"], ours["milliseconds"][stage]["median"]
            ),
        }
        for stage in ours["milliseconds"]
    ]
    for label, key, unit in (("images/s", "images_per_second", 1), ("MiB", "peak_bytes", MIB)):
        values = [x[key] for x in (ours, plain)]
        texts = ["-" if x is None else f"{x / unit:.3g}" for x in values]
        rows.append({"stage": label, "ours ms": texts[0], "plain ms": texts[1], "speed-up": ""})
    print(
        f"\n{result['config_file']}: {result['batch']} images of {result['input_size']}, "
        f"{result['samples']} mask samples, {result['precision']}; losses differ by "
        f"{result['difference']:.1g}\n\n{markdown_table(rows)}"
    )


def _part_row(result: dict[str, Any]) -> dict[str, str]:
    timings = {name: Timing(**values) for name, values in result["milliseconds"].items()}
    peaks = result["peak_bytes"]
    known = None not in peaks.values()
    return {
        "case": result["case"],
        "images": str(result["images"]),
        "objects": str(result["instances"]),
        "size": "x".join(str(side) for side in result["size"]),
        "samples": str(result["samples"]),
        "ours ms": str(timings["ours"]),
        "plain ms": str(timings["plain"]),
        "speed-up": f"{result['speedup']:.1f}",
        "of least": _ratio(timings["plain"].least, timings["ours"].least),
        "ours MiB": f"{peaks['ours'] / MIB:.0f}" if known else "-",
        "plain MiB": f"{peaks['plain'] / MIB:.0f}" if known else "-",
        "share": f"{peaks['ours'] / peaks['plain']:.2f}" if known else "-",
        "differ by": f"{result['difference']:.1g}",
    }


def _ratio(plain: float, ours: float) -> str:
    return f"{plain / ours:.1f}" if ours else "-"
