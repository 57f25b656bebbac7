"""Panoptic annotations of the data set `shapes`, made of its instances and its stuff.

For each split, in COCO's format and as Detectron2 wants stuff:

    DIR/panoptic_train/000000000000.png ...        segment ids
    DIR/panoptic_stuff_train/000000000000.png ...  0 all things, 1, 2, ... stuff classes
    DIR/annotations/panoptic_train.json            written last: it is there when all is

Segments are numbered from 1 in each image: the objects in the order of their annotations, then the
stuff by class. Categories 1 to K are the things, K + 1 to K + S the stuff.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.panoptic_json import write_segment_ids
from solo_d2.data.shapes.drawing import SPLITS, STUFF_CLASSES, THING_CLASSES, draw_stuff
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.images import write_image

# RGB of each thing and each stuff class, in overlays.
THING_COLORS = (
    (230, 60, 60),
    (60, 140, 230),
    (245, 180, 40),
    (170, 80, 220),
    (60, 190, 90),
    (240, 120, 190),
    (70, 200, 210),
)
STUFF_COLORS = ((150, 195, 240), (110, 160, 60), (40, 90, 150), (165, 95, 70))

CATEGORIES = tuple(
    {"id": index, "name": name, "isthing": isthing, "color": list(color)}
    for index, (name, isthing, color) in enumerate(
        [
            *((name, 1, color) for name, color in zip(THING_CLASSES, THING_COLORS, strict=True)),
            *((name, 0, color) for name, color in zip(STUFF_CLASSES, STUFF_COLORS, strict=True)),
        ],
        start=1,
    )
)


def json_file(root: Path, split: str) -> Path:
    """The panoptic json of a split."""
    return root / "annotations" / f"panoptic_{split}.json"


def has_panoptic(root: Path) -> bool:
    """Whether a data set has its panoptic annotations."""
    return all(json_file(root, split).is_file() for split in SPLITS)


def add_panoptic(root: Path, work: Path, split: str, seed: int) -> None:
    """Write the panoptic annotations of a split, whole or not at all.

    Args:
        root: folder of the data set.
        work: an empty folder on the same disk, for what is not finished; shared by the splits.
        split: one of SPLITS.
        seed: of the data set.
    """
    if json_file(root, split).is_file():
        return
    write_panoptic(work, split, seed, source=root)
    for name in _folders(split):
        if (root / name).exists():  # without its json: of a process that died
            (root / name).rename(work / f"old_{name}")
        (work / name).rename(root / name)
    json_file(work, split).rename(json_file(root, split))


def _folders(split: str) -> tuple[str, str]:
    return f"panoptic_{split}", f"panoptic_stuff_{split}"


def write_panoptic(folder: Path, split: str, seed: int, source: Path | None = None) -> None:
    """Write the panoptic annotations of a split into a folder that has none.

    Args:
        folder: to write to.
        split: one of SPLITS.
        seed: of the data set.
        source: folder of the data set; `folder` if None.

    Raises:
        DatasetError: the seed gives other images than those that are there.
    """
    file = (source or folder) / "annotations" / f"instances_{split}.json"
    instances = json.loads(file.read_text())
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in instances["images"]}
    for item in instances["annotations"]:
        objects[item["image_id"]].append(item)
    roots = [folder / name for name in _folders(split)]
    for root in (*roots, folder / "annotations"):
        root.mkdir(exist_ok=True)
    annotations = []
    for index, image in enumerate(instances["images"]):
        stuff = draw_stuff(seed, split, index)
        if stuff.shape != (image["height"], image["width"]):
            raise DatasetError(
                f"{file} has other images than this generator draws of seed {seed}; make the data "
                f"set anew by 'python -m solo_d2.data.shapes --output {source or folder} --force'"
            )
        name = Path(image["file_name"]).with_suffix(".png").name
        segments = _write_image(roots, name, stuff, objects[image["id"]])
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    content = {
        "info": instances["info"],
        "licenses": [],
        "images": instances["images"],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    json_file(folder, split).write_text(json.dumps(content))


def _write_image(
    roots: list[Path], name: str, stuff: NDArray[np.uint8], objects: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write both PNGs of an image; its segments."""
    ids = np.zeros(stuff.shape, np.int32)
    segments: list[dict[str, Any]] = []

    def add(mask: NDArray[np.bool_], category: int) -> None:
        fields = describe_mask(mask)
        del fields["segmentation"]
        segments.append({"id": len(segments) + 1, "category_id": category, **fields})
        ids[mask] = len(segments)

    for item in objects:
        add(coco_mask.decode(item["segmentation"]).astype(bool), item["category_id"])
    labels = np.where(ids == 0, stuff + 1, 0).astype(np.uint8)
    for label in np.unique(labels[labels > 0]).tolist():
        add(labels == label, len(THING_CLASSES) + label)
    write_segment_ids(roots[0] / name, ids)
    write_image(roots[1] / name, Image.fromarray(labels), format="PNG")
    return segments
