"""Overlays of instances: the one for video compared with Detectron2's Visualizer.

One run draws the same instances over the same image by all, alternately: by
`solo_d2.visualization.overlay`, by Detectron2's Visualizer as it is
(`draw_instance_predictions`), and by `solo_d2.visualization.publication`, which uses parts of it.
"""

import argparse
import itertools
from functools import partial
from typing import Any

import torch
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer

from solo_d2.modeling.meta_arch.solo import to_instances
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.structures import Predictions
from solo_d2.visualization import overlay, publication
from tools.benchmarks.common import (
    Functions,
    add_common_arguments,
    compare,
    parse_size,
    run_cases,
)
from tools.benchmarks.scenes import make_scene

NUM_CLASSES = 80  # of COCO


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py drawing`."""
    sizes = [(1080, 1920)]
    parser.add_argument("--num", type=int, nargs="+", default=[10, 100], help="instances")
    parser.add_argument("--size", type=parse_size, nargs="+", default=sizes, help="of the image")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    cases = itertools.product(args.size, args.num)
    run_cases(args, (_run_case(args, *case) for case in cases))


def _run_case(args: argparse.Namespace, size: tuple[int, int], num: int) -> dict[str, Any]:
    masks, classes, scores = make_scene(num, size, NUM_CLASSES, args.seed, distinct=True)
    found = to_instances(Predictions(scores, classes, masks, mask_boxes(masks)), size)
    generator = torch.Generator().manual_seed(args.seed)
    image = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
    names = [f"class {index}" for index in range(NUM_CLASSES)]
    functions: Functions = {
        "ours": partial(overlay.draw_instances, image, found.to(args.device), names),
        "Detectron2": lambda: (
            Visualizer(image, Metadata(thing_classes=names))
            .draw_instance_predictions(found)
            .get_image()
        ),
        "publication": partial(publication.draw_instances, image, found, names),
    }
    return {"num": num, "size": list(size), **compare(functions, args)}
