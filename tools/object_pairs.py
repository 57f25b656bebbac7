#!/usr/bin/env python3
"""Count pairs of objects that location or size distinguishes (SOLO, section 1).

    python tools/object_pairs.py datasets/coco/annotations/instances_val2017.json

On COCO val2017 98.3 % of all pairs in an image have centres more than 30 pixels apart, and 40.5 %
of the others differ in size by more than 1.5 times; the remaining pairs compete for the same cells
(MODEL.SOLO.CELL_CONFLICT). Centres are box centres, size is sqrt(width * height); crowd regions are
ignored.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from solo_d2.data.coco_json import read_lists
from solo_d2.data.problems import refuse_errors
from solo_d2.utils.errors import DatasetError
from tools.arguments import entry_point, plain_parser

# Distance in pixels and ratio of sizes of the paper.
DISTANCE, RATIO = 30, 1.5


class PairCounts(NamedTuple):
    """Objects, pairs in one image, near pairs, near pairs of different size."""

    objects: int
    pairs: int
    near: int
    near_of_other_size: int


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    parser.add_argument("json", type=Path, metavar="FILE", help="instances in COCO format")
    return parser.parse_args(argv)


def count_pairs(boxes: Sequence[Tensor], *, distance: float, ratio: float) -> PairCounts:
    """Count pairs of objects.

    `boxes` has (N, 4) float64 XYWH in pixels for each image. Pairs are apart if their centres are
    more than `distance` pixels apart, and of different size if their size ratio is above `ratio`.
    """
    total = torch.zeros(4, dtype=torch.int64)
    for box in boxes:
        apart = torch.pdist(box[:, :2] + box[:, 2:] / 2) > distance
        size = box[:, 2:].clamp(min=0).prod(dim=1).sqrt()
        first, second = torch.triu_indices(len(box), len(box), offset=1)
        larger, smaller = (f(size[first], size[second]) for f in (torch.maximum, torch.minimum))
        near = ~apart
        other = near & (larger > ratio * smaller)
        total += torch.tensor([len(box), len(apart), int(near.sum()), int(other.sum())])
    return PairCounts(*total.tolist())


def read_boxes(file: Path) -> list[Tensor]:
    """Read the boxes of the objects of each image, without crowd regions."""
    boxes: dict[object, list[list[float]]] = defaultdict(list)
    for number, entry in enumerate(read_lists(file, refuse_errors(file)).get("annotations", [])):
        if entry.get("iscrowd"):
            continue
        try:
            x, y, width, height = map(float, entry["bbox"])
            boxes[entry["image_id"]].append([x, y, width, height])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{file}: annotations[{number}] needs 'image_id' and 'bbox' of four numbers"
            ) from error
    return [torch.tensor(of_image, dtype=torch.float64) for of_image in boxes.values()]


def run(args: argparse.Namespace) -> None:
    """Print the counts."""
    counts = count_pairs(read_boxes(args.json), distance=DISTANCE, ratio=RATIO)
    apart = (counts.pairs - counts.near) / max(counts.pairs, 1)
    other = counts.near_of_other_size / max(counts.near, 1)
    print(f"{counts.objects} objects, {counts.pairs} pairs of objects of one image")
    print(f"{apart:.1%} have centres more than {DISTANCE} pixels apart")
    print(f"{other:.1%} of the other {counts.near} differ in size by more than {RATIO} times")


main = entry_point("object_pairs", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
