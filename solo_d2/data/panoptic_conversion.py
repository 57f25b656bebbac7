"""Convert COCO's panoptic format to instances and stuff maps.

A conversion is a folder:

    DIR/conversion.json    what it was made from
    DIR/instances.json     thing segments as COCO instances (RLE), also of crowds
    DIR/stuff/*.png        (H, W) 8-bit: 0 all things, 1 to S stuff classes by category id, 255 none

Does not import Detectron2.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from solo_d2.data.image_folder import ImageFolder, spellings
from solo_d2.data.label_pngs import require_size
from solo_d2.data.panoptic_json import (
    IGNORE_LABEL,
    PanopticCategories,
    PanopticJson,
    fill_runs,
    read_panoptic_json,
    read_segment_ids,
    segment_runs,
)
from solo_d2.data.problems import Problem, Report
from solo_d2.data.whole_folder import only_writer, whole_folder
from solo_d2.data.workers import num_workers
from solo_d2.utils.errors import DatasetError, shown
from solo_d2.utils.images import write_image

# Increment when the conversion of the same files changes.
CONVERSION_VERSION = 1
STAMP = "conversion.json"
INSTANCES = "instances.json"
STUFF = "stuff"


def default_folder(panoptic_root: str | Path) -> Path:
    """Return the default folder of the conversion, beside the panoptic PNGs."""
    root = Path(panoptic_root)
    return root.with_name(f"{root.name}_converted")


def ensure_converted(
    panoptic_json: str | Path,
    panoptic_root: str | Path,
    folder: str | Path | None = None,
    *,
    image_root: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Convert a data set unless it is up to date. Safe to call from many processes at once.

    Args:
        panoptic_json: COCO's panoptic json.
        panoptic_root: folder of its PNGs.
        folder: of the conversion, `default_folder(panoptic_root)` if None.
        image_root: images that are not directly in there are looked for in its subfolders, as the
            json of Cityscapes leaves the cities out. None: names are taken as they are.
        force: convert again even if the json is unchanged; changed PNGs are not detected.

    Returns:
        The folder.

    Raises:
        DatasetError: a file is missing or wrong, or the folder holds something else.
    """
    root = default_folder(panoptic_root) if folder is None else Path(folder)
    stamp = _make_stamp(panoptic_json)
    if _is_ready(root, stamp) and not force:
        return root
    try:
        with only_writer(root):
            if _is_ready(root, stamp) and not force:
                return root
            with whole_folder(root) as new:
                _convert(new, panoptic_json, Path(panoptic_root), image_root)
                (new / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
    except OSError as error:
        # Without file locks another writer may have finished first.
        if not force and (root / STAMP).is_file() and _is_ready(root, stamp):
            return root
        raise DatasetError(
            f"The conversion of {panoptic_json} cannot be written to {root.absolute()}: {error}. "
            f"Name another folder: python tools/convert_panoptic.py --json {panoptic_json} "
            f"--png-dir {panoptic_root} --output DIR, and DIR as the fifth part of the entry of "
            "DATASETS.COCO_PANOPTIC_FORMAT"
        ) from error
    return root


def write_stuff_maps(
    panoptic_json: str | Path, panoptic_root: str | Path, folder: str | Path
) -> Path:
    """Write the stuff maps alone into a new folder: Detectron2's `panoptic_stuff_train2017`.

    Raises DatasetError if the folder holds something, or the data set cannot be used.
    """
    root = Path(folder)
    _require_empty(root)
    try:
        with only_writer(root), whole_folder(root) as new:
            content = read_panoptic_json(panoptic_json, png_root=panoptic_root)
            for _ in _describe_all(content, Path(panoptic_root), new):
                pass
    except OSError as error:
        raise DatasetError(f"{root.absolute()} cannot be written: {error}") from error
    return root


def _make_stamp(panoptic_json: str | Path) -> dict[str, Any]:
    try:
        digest = hashlib.blake2b(Path(panoptic_json).read_bytes(), digest_size=16)
    except OSError as error:
        raise DatasetError(f"The panoptic json {panoptic_json} cannot be read: {error}") from error
    return {"version": CONVERSION_VERSION, "json_blake2b": digest.hexdigest()}


def _is_ready(root: Path, stamp: dict[str, Any]) -> bool:
    """Return whether the folder holds the conversion of this json; refuse other content."""
    if not (root / STAMP).is_file():
        _require_empty(root)
        return False
    try:
        return bool(json.loads((root / STAMP).read_text()) == stamp)
    except ValueError:
        return False


def _require_empty(root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(
            f"{root.absolute()} exists, but is no conversion of a panoptic data set. It is left as "
            "it is: move it away, or name another folder"
        )


def _convert(
    folder: Path, panoptic_json: str | Path, panoptic_root: Path, image_root: str | Path | None
) -> None:
    content = read_panoptic_json(panoptic_json, png_root=panoptic_root)
    (folder / STUFF).mkdir()
    instances: list[dict[str, Any]] = []
    for objects in _describe_all(content, panoptic_root, folder / STUFF):
        for item in objects:
            instances.append({"id": len(instances) + 1, **item})
    images = [content.images[key] for key in content.annotations]
    names = [image["file_name"] for image in images]
    if image_root is not None:
        names = _below(image_root, names)
    result = {
        "info": {"description": f"Things of {Path(panoptic_json).name}"},
        "images": [{**image, "file_name": name} for image, name in zip(images, names, strict=True)],
        "annotations": instances,
        "categories": content.categories.things,
    }
    (folder / INSTANCES).write_text(json.dumps(result))


def _below(root: str | Path, names: Iterable[str]) -> list[str]:
    """Prefix the names of files that are in a subfolder with that subfolder."""
    folder = ImageFolder(root)
    subfolders: dict[str, str] = {}
    found = []
    for name in names:
        if folder.find(name) is None:
            if not subfolders:
                files = (Path(where) / name for where, _, names in os.walk(root) for name in names)
                subfolders = {file.name: os.fspath(file.relative_to(root)) for file in files}
            tried = (name, *(spelling for spelling, _ in spellings(name)))
            name = next((subfolders[key] for key in tried if key in subfolders), name)
        found.append(name)
    return found


def _describe_all(
    content: PanopticJson, panoptic_root: Path, stuff_root: Path
) -> Iterator[list[dict[str, Any]]]:
    """Write each stuff map, with a progress bar, and yield its instances without ids."""

    def describe(annotation: dict[str, Any]) -> list[dict[str, Any]]:
        image = content.images[annotation["image_id"]]
        file = stuff_root / stuff_name(annotation["file_name"])
        stuff, objects = describe_image(panoptic_root, annotation, image, content.categories)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image(file, Image.fromarray(stuff))
        return objects

    with ThreadPoolExecutor(num_workers()) as pool:
        done = pool.map(describe, content.annotations.values())
        total = len(content.annotations)
        try:
            yield from tqdm(done, "converting", total, unit="image", mininterval=1.0)
        finally:  # do not wait for queued images after an interrupt
            pool.shutdown(cancel_futures=True)


def stuff_name(panoptic_name: str) -> str:
    """Return the stuff map's file name of a panoptic PNG."""
    return os.path.splitext(panoptic_name)[0] + ".png"


def describe_image(
    panoptic_root: Path,
    annotation: dict[str, Any],
    image: dict[str, Any],
    categories: PanopticCategories,
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Convert one image: its entries in 'annotations' and 'images'.

    Returns:
        (H, W) stuff map, and the COCO annotations of the thing segments, in the json's order,
        without ids; `segment_id` names the segment. DatasetError if the PNG is unusable or differs
        from the json.
    """
    file, segments = panoptic_root / annotation["file_name"], annotation["segments_info"]
    ids = read_segment_ids(file)
    require_size(file, ids.shape, image)
    run_ids, runs = segment_runs(file, ids, segments)
    stuff_ids = categories.stuff_ids
    labels = {s["id"]: stuff_ids.get(s["category_id"], 0) for s in segments} | {0: IGNORE_LABEL}
    stuff = fill_runs(run_ids, runs, labels, ids.shape).astype(np.uint8)
    objects = [
        {
            "image_id": annotation["image_id"],
            "category_id": segment["category_id"],
            "segment_id": segment["id"],
            **_describe_rle(_rle(runs[run_ids == segment["id"]], *ids.shape)),
            "iscrowd": int(segment["iscrowd"]),
        }
        for segment in segments
        if segment["category_id"] not in stuff_ids
    ]
    return stuff, objects


def _rle(runs: NDArray[np.intp], height: int, width: int) -> dict[str, Any]:
    """Encode the runs of one mask, (R, 2) first pixels and ends, as compressed RLE."""
    counts = np.diff(runs.ravel(), prepend=0, append=height * width).tolist()
    if counts[-1] == 0:  # as pycocotools encodes a mask
        counts.pop()
    plain = {"size": [height, width], "counts": counts}
    return dict(coco_mask.frPyObjects(plain, height, width))


def describe_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's fields of a non-empty (H, W) mask: tight XYWH box, area, `iscrowd` 0, RLE."""
    return _describe_rle(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


def _describe_rle(rle: dict[str, Any]) -> dict[str, Any]:
    return {
        "bbox": [int(value) for value in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }


def report_panoptic_problems(metadata: Any, report: Report) -> None:
    """Report problems of the conversion; raise DatasetError if the json is unusable."""
    root = Path(metadata.panoptic_root)
    content = read_panoptic_json(metadata.panoptic_json, metadata.name, root, report)
    for key, annotation in content.annotations.items():
        try:
            describe_image(root, annotation, content.images[key], content.categories)
        except DatasetError as error:
            report(Problem("panoptic PNG cannot be used", f"image {shown(key)}", str(error)))
