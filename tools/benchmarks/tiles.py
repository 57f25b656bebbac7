"""Compare tiled inference with one pass over large pictures: AP of masks, seconds, memory.

The pictures are laid out in a grid of a data set's images of one size (--cell); with --cell as
large as --size they are these images.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO

from solo_d2 import Predictor, Tiles
from solo_d2.evaluation.average_precision import index_coco, load_backend
from solo_d2.ops.mask_crops import crops_of, join_crops
from solo_d2.ops.rle import encode_masks
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.images import read_image
from tools.benchmarks.common import (
    CPU,
    MIB,
    add_common_arguments,
    begin,
    markdown_table,
    parse_size,
    peak_memory,
    save,
)
from tools.benchmarks.evaluation import coco_metrics

# More than there are objects in a picture: all predictions count.
MOST = (1, 10, 100_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py tiles`."""
    add = parser.add_argument
    add("--model", required=True, help="checkpoint next to its config, or an exported model")
    add("--truth", type=Path, required=True, help="COCO JSON")
    add("--images", type=Path, required=True, help="its folder of images")
    add("--cell", type=parse_size, required=True, help="size of the images that are laid out")
    add("--size", type=parse_size, default=(3500, 5500), help="of a picture")
    add("--pictures", type=int, default=1)
    add("--tiles", type=int, required=True, help="side of a tile in pixels")
    add("--overlap", type=int, help="pixels; default: a quarter of the side")
    add("--whole-image", action="store_true", help="look at the whole picture too")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run both ways, print the table, save the results."""
    machine = begin(args, CPU)
    pictures, truth = lay_out(args)
    counts = {"pictures": len(pictures), "objects": len(truth["annotations"])}
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    ways = {"one pass": None, "tiles": Tiles(args.tiles, args.overlap, args.whole_image)}
    rows = []
    for name, tiles in ways.items():
        predictor = Predictor(args.model, score_thresh=None, device="cpu", tiles=tiles)
        rows.append({"way": name, **_measure(predictor, pictures, truth)})
    print(f"\n{markdown_table(rows)}")
    save(args, {"machine": machine, "counts": counts, "ways": rows})


def lay_out(args: argparse.Namespace) -> tuple[list[NDArray[np.uint8]], dict[str, Any]]:
    """Return the pictures, (H, W, 3) RGB, and their ground truth in COCO format."""
    coco = index_coco(json.loads(args.truth.read_bytes()))
    fitting = [x for x in coco.imgs.values() if (x["height"], x["width"]) == args.cell]
    if not fitting:
        raise ConfigError(f"{args.truth} has no image of --cell {args.cell}")
    np.random.default_rng(args.seed).shuffle(fitting)
    images, pictures = cycle(fitting), []
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = coco.dataset["categories"]
    for image_id in range(args.pictures):
        picture = np.zeros((*args.size, 3), np.uint8)
        for (y, x), image in zip(_corners(args.size, args.cell), images, strict=False):
            part = read_image(args.images / image["file_name"])
            picture[y : y + args.cell[0], x : x + args.cell[1]] = part
            objects = _moved(coco, image["id"], (x, y), args.size)
            for entry in objects:
                entry |= {"image_id": image_id, "id": len(truth["annotations"]) + 1}
                truth["annotations"].append(entry)
        pictures.append(picture)
        size = {"height": args.size[0], "width": args.size[1]}
        truth["images"].append({"id": image_id, **size})
    return pictures, truth


def _corners(size: tuple[int, int], cell: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield y and x of each cell."""
    for y in range(0, size[0] - cell[0] + 1, cell[0]):
        for x in range(0, size[1] - cell[1] + 1, cell[1]):
            yield y, x


def _moved(
    coco: COCO, image_id: Any, corner: tuple[int, int], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return the annotations of an image, where it lies in the picture."""
    found = coco.imgToAnns[image_id]
    masks = (torch.from_numpy(coco.annToMask(item)[None] > 0) for item in found)
    crops = join_crops([crops_of(mask).moved(*corner, size) for mask in masks], size, CPU)
    return [
        {
            "category_id": item["category_id"],
            "iscrowd": item.get("iscrowd", 0),
            "area": float(part.sum()),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": {**code, "counts": code["counts"].decode("ascii")},
        }
        for item, part, (left, top, right, bottom), code in zip(
            found, crops.parts(), crops.windows, encode_masks(crops), strict=True
        )
    ]


def _measure(
    predictor: Predictor, pictures: list[NDArray[np.uint8]], truth: dict[str, Any]
) -> dict[str, Any]:
    results: list[dict[str, Any]] = []

    def find() -> None:
        for image_id, picture in enumerate(pictures):
            results.extend(predictor.find(picture).to_coco(image_id))

    start = time.perf_counter()
    peak = peak_memory(find, CPU)
    seconds = time.perf_counter() - start
    ap = coco_metrics(load_backend("auto")[1], truth, results, "segm", MOST)
    return {
        "found": len(results),
        "AP": f"{100 * ap[0]:.1f}",
        "AP50": f"{100 * ap[1]:.1f}",
        "seconds": f"{seconds:.1f}",
        "peak MiB": "" if peak is None else f"{peak / MIB:.0f}",
    }
