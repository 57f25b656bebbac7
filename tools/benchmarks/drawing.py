"""Overlays of instances: the one for video beside Detectron2's Visualizer.

Shape letters: N instances, H and W rows and columns.

One run draws the same instances over the same image by all, in turns: by
`solo_d2.visualization.overlay`, by Detectron2's Visualizer as it is
(`draw_instance_predictions`), and by `solo_d2.visualization.publication`, which uses parts of it.
"""

import argparse
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.structures import Predictions
from solo_d2.utils.files import save_json
from tools.benchmarks.common import (
    Timing,
    add_common_arguments,
    describe_machine,
    markdown_table,
    measure,
    peak_memory,
)
from tools.benchmarks.nms import parse_size
from tools.benchmarks.scenes import make_scene

MIB = 1 << 20
NUM_CLASSES = 80  # of COCO


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py drawing`."""
    parser.add_argument("--num", type=int, nargs="+", default=[10, 100], help="instances")
    parser.add_argument(
        "--size", type=parse_size, nargs="+", default=[(1080, 1920)], help="of the image"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = [_run_case(args, num, size) for size in args.size for num in args.num]
    print("\nmilliseconds: median (a tenth below - a tenth above); MiB: peak beyond the inputs\n")
    print(markdown_table([_table_row(result) for result in results]))
    if args.output:
        save_json(args.output, {"machine": machine, "results": results})


def _run_case(args: argparse.Namespace, num: int, size: tuple[int, int]) -> dict[str, Any]:
    # Imported here, as options are listed where Detectron2 is missing too.
    from solo_d2.modeling.meta_arch.solo import to_instances
    from solo_d2.visualization import overlay, publication

    masks, classes, scores = make_scene(num, size, NUM_CLASSES, args.seed, distinct=True)
    found = to_instances(Predictions(scores, classes, masks, mask_boxes(masks)), size)
    generator = torch.Generator().manual_seed(args.seed)
    image = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
    names = [f"class {index}" for index in range(NUM_CLASSES)]
    functions = {
        "ours": partial(overlay.draw_instances, image, found.to(args.device), names),
        "detectron2": partial(publication.draw_as_detectron2, image, found, names),
        "publication": partial(publication.draw_instances, image, found, names),
    }
    # On a GPU too this is what the host does in the end: wall time.
    timings = measure(functions, torch.device("cpu"), repeats=args.repeats, budget=args.budget)
    return {
        "num": num,
        "size": list(size),
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "speedup": timings["detectron2"].median / timings["ours"].median,
        "peak_bytes": {
            name: peak_memory(function, args.device) for name, function in functions.items()
        },
    }


def _table_row(result: dict[str, Any]) -> dict[str, str]:
    timings = {name: Timing(**values) for name, values in result["milliseconds"].items()}
    memory = {
        name: "-" if value is None else f"{value / MIB:.0f}"
        for name, value in result["peak_bytes"].items()
    }
    return {
        "N": str(result["num"]),
        "size": "x".join(str(side) for side in result["size"]),
        "ours ms": str(timings["ours"]),
        "Detectron2 ms": str(timings["detectron2"]),
        "publication ms": str(timings["publication"]),
        "speed-up": f"{result['speedup']:.0f}",
        "of least": f"{timings['detectron2'].least / timings['ours'].least:.0f}",
        "ours MiB": memory["ours"],
        "Detectron2 MiB": memory["detectron2"],
    }
