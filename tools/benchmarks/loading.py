"""Compare the training mapper with Detectron2's own, on generated records of COCO's size.

Both map the same records (an image file, --num objects as polygons or RLE) alternately, with the
same augmentation: the short side becomes --short-side, half of the images are flipped. Both give
bitmasks.

- mapper: one call in this process.
- worker: images that one worker of torch's DataLoader delivers.
- MiB: what a sample carries from a worker to the training process, its image included.
"""

import argparse
import itertools
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MapDataset
from detectron2.structures import BoxMode
from torch.utils.data import DataLoader

from solo_d2.config import add_solo_config
from solo_d2.data.mapper import SOLODatasetMapper
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.rle import encode_masks
from tools.benchmarks.common import (
    CPU,
    MIB,
    Timing,
    add_common_arguments,
    begin,
    markdown_table,
    measure,
    parse_size,
    save,
    table_row,
    timing_of,
)
from tools.benchmarks.scenes import make_scene

KINDS = ("polygons", "rle")
# Greatest distance of a polygon from the outline, in pixels.
TOLERANCE = 0.7

Record = dict[str, Any]
Mapper = Callable[[Record], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py loading`."""
    add = parser.add_argument
    add("--num", type=int, nargs="+", default=[10, 300], help="objects per image")
    add("--size", type=parse_size, default=(480, 640), help="of the images (480x640)")
    add("--short-side", type=int, default=800, help="after resizing (%(default)s)")
    add("--images", type=int, default=8, help="of a worker in each round (%(default)s)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the table, save the results."""
    machine = begin(args, CPU)
    mappers = make_mappers(args.short_side)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, num in itertools.product(KINDS, args.num):
            record = make_record(Path(folder), kind, num, args.size, args.seed)
            results += _run_case(args, mappers, record, {"kind": kind, "objects": num})
    print(f"\n{markdown_table([table_row(result) for result in results])}")
    save(args, {"machine": machine, "results": results})


def make_mappers(short_side: int) -> dict[str, Mapper]:
    """Return this project's mapper and Detectron2's, by name, with the same augmentation."""
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (short_side,)
    return {
        "ours": SOLODatasetMapper(cfg, is_train=True),
        "Detectron2": DatasetMapper(cfg, is_train=True),
    }


def make_record(folder: Path, kind: str, num: int, size: tuple[int, int], seed: int) -> Record:
    """Generate a dataset dict of an image, which is written to the folder."""
    height, width = size
    file = folder / "image.jpg"
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    cv2.imwrite(str(file), cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    masks, classes, _ = make_scene(num, size, 80, seed, distinct=True)
    segmentations = encode_masks(masks) if kind == "rle" else [_polygons(m) for m in masks.numpy()]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0,
         "segmentation": segmentation}
        for box, label, segmentation in zip(
            mask_boxes(masks).tolist(), classes.tolist(), segmentations, strict=True
        )
    ]  # fmt: skip
    return {
        "file_name": str(file),
        "image_id": 1,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline a mask; a tiny part becomes the square of a pixel."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, TOLERANCE, closed=True).reshape(-1, 2).astype(float)
        if len(points) < 3:
            points = points[0] + np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        polygons.append(points.reshape(-1).tolist())
    return polygons


def _run_case(
    args: argparse.Namespace, mappers: Mapping[str, Mapper], record: Record, case: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    samples = {name: _seeded(mapper, record, args.seed) for name, mapper in mappers.items()}
    different = pixels_that_differ(*samples.values())
    carried = {name: len(pickle.dumps(sample)) / MIB for name, sample in samples.items()}
    del samples
    calls = {name: partial(mapper, record) for name, mapper in mappers.items()}
    alone = measure(calls, args.repeats)
    worker = _time_workers(mappers, record, args)
    for name in mappers:
        yield {
            **case,
            "way": name,
            "mapper_images_per_s": _rate(alone[name]),
            "worker_images_per_s": _rate(worker[name]),
            "MiB": carried[name],
            "mapper_speedup": alone["Detectron2"]["median"] / alone[name]["median"],
            "worker_speedup": worker["Detectron2"]["median"] / worker[name]["median"],
            "pixels_that_differ": different,
        }


def _seeded(mapper: Mapper, record: Record, seed: int) -> dict[str, Any]:
    np.random.seed(seed)
    return mapper(record)


def _rate(timing: Timing) -> float:
    return 1000 / timing["median"]


def pixels_that_differ(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the share of mask pixels in which two samples differ; NaN if their numbers do."""
    # As training does, which leaves the cropped masks of the sample as they are.
    masks = [sample["instances"].gt_masks.to("cpu").tensor for sample in (ours, theirs)]
    if masks[0].shape != masks[1].shape:
        return float("nan")
    return int((masks[0] != masks[1]).sum()) / max(1, int(masks[1].sum()))


def _time_workers(
    mappers: Mapping[str, Mapper], record: Record, args: argparse.Namespace
) -> dict[str, Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in mappers}
    for _ in range(args.repeats):
        for name, mapper in mappers.items():
            items = MapDataset([record] * (args.images + 1), mapper)
            loader = iter(DataLoader(items, batch_size=None, num_workers=1))
            next(loader)  # the worker has started
            start = time.perf_counter()
            for _sample in loader:
                pass
            seconds[name].append(time.perf_counter() - start)
    return {name: timing_of(each, args.images) for name, each in seconds.items()}
