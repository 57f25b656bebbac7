"""The data set `shapes` on disk: written once, atomically, by one process at a time.

Layout, in COCO format:

    DIR/dataset.json                      what was made: generator version, seed, counts
    DIR/train/000000000000.jpg ...        images
    DIR/val/...
    DIR/annotations/instances_train.json ...
    DIR/annotations/panoptic_train.json ...
    DIR/panoptic_train/000000000000.png ...        segment ids
    DIR/panoptic_stuff_train/000000000000.png ...  0 all things, 1, 2, ... stuff classes
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from solo_d2.data.locations import datasets_root
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.panoptic_json import write_segment_ids
from solo_d2.data.shapes.drawing import SPLITS, STUFF_CLASSES, THING_CLASSES, Drawing, draw_image
from solo_d2.data.whole_folder import only_writer, whole_folder
from solo_d2.data.workers import num_workers
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.images import write_image

# Raise it whenever the same seed gives other images or annotations.
GENERATOR_VERSION = 1
STAMP = "dataset.json"
# Colours as sharp as the outlines: by default JPEG halves their resolution.
JPEG_PARAMS = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)
# Images for which it is worth while to start other processes.
WORTH_WORKERS = 200
# RGB of each thing and each stuff class, in overlays.
THING_COLORS = (
    *((230, 60, 60), (60, 140, 230), (245, 180, 40), (170, 80, 220), (60, 190, 90)),
    *((240, 120, 190), (70, 200, 210)),
)
_STUFF_COLORS = ((150, 195, 240), (110, 160, 60), (40, 90, 150), (165, 95, 70))
# Of the panoptic json: first the things, then the stuff.
CATEGORIES = tuple(
    {"id": index, "name": name, "isthing": int(name in THING_CLASSES), "color": list(color)}
    for index, (name, color) in enumerate(
        zip(THING_CLASSES + STUFF_CLASSES, THING_COLORS + _STUFF_COLORS, strict=True), start=1
    )
)


@dataclass(frozen=True)
class ShapesParams:
    """What a data set is made from: number of images of each split, and the seed."""

    num_train: int = 3000
    num_val: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"{key} must not be negative, it is {value}")

    def count(self, split: str) -> int:
        """Number of images of a split."""
        return {"train": self.num_train, "val": self.num_val}[split]

    def stamp(self) -> dict[str, Any]:
        """Content of the stamp file."""
        return {"dataset": "shapes", "generator_version": GENERATOR_VERSION, **asdict(self)}


def default_root() -> Path:
    """`shapes` in the folder where Detectron2 looks for data sets (DETECTRON2_DATASETS)."""
    return datasets_root() / "shapes"


def ensure_shapes(
    root: Path | str | None = None,
    params: ShapesParams | None = None,
    *,
    force: bool = False,
) -> Path:
    """Make the data set unless it is there; cheap when it is.

    Of many processes that call it at once one writes, the others wait for it.

    Args:
        root: the data set's folder, `default_root()` if None.
        params: what to make. None: any counts and seed that are there will do, defaults otherwise.
        force: replace a data set of another seed, size or generator version.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder holds something else, or cannot be written.
    """
    root = default_root() if root is None else Path(root)
    if _is_ready(root, params, force):
        return root
    try:
        with only_writer(root):
            if _is_ready(root, params, force):
                return root
            sizes = params or ShapesParams()
            with whole_folder(root) as new:
                for split in SPLITS:
                    _write_split(new, split, sizes)
                (new / STAMP).write_text(json.dumps(sizes.stamp(), indent=2) + "\n")
    except OSError as error:
        # Another writer was first (possible only without locks): its folder will do.
        if (root / STAMP).is_file() and _is_ready(root, params, force=False):
            return root
        raise DatasetError(
            f"The data set 'shapes' cannot be written to {root.absolute()}: {error}. Name a folder "
            "with some 60 MB of room by DETECTRON2_DATASETS, or write it by "
            "'python -m solo_d2.data.shapes --output DIR'."
        ) from error
    return root


def _is_ready(root: Path, params: ShapesParams | None, force: bool) -> bool:
    """Whether the folder holds what is asked for; an error if it holds anything else."""
    if not root.exists():
        return False
    if not (root / STAMP).is_file():
        if root.is_dir() and not any(root.iterdir()):
            return False
        raise DatasetError(
            f"{root.absolute()} exists, but is not a generated data set 'shapes' (it has no "
            f"{STAMP}). It is left as it is: move it away, or name another folder."
        )
    found = _read_stamp(root / STAMP)
    wanted = params.stamp() if params else {**found, "generator_version": GENERATOR_VERSION}
    differences = ", ".join(
        f"{key} is {found.get(key)}, wanted {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    )
    if not differences or force:
        return not differences
    sizes = params or ShapesParams(**{key: found[key] for key in asdict(ShapesParams())})
    raise DatasetError(
        f"The data set 'shapes' in {root.absolute()} is another one: {differences}. Replace it "
        f"by 'python -m solo_d2.data.shapes --output {root} --num-train {sizes.num_train} "
        f"--num-val {sizes.num_val} --seed {sizes.seed} --force'."
    )


def _read_stamp(path: Path) -> dict[str, Any]:
    try:
        stamp = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path.absolute()} is not valid JSON; delete the folder.") from error
    if not isinstance(stamp, dict) or stamp.get("dataset") != "shapes":
        raise DatasetError(f"{path.absolute()} is not the stamp of a data set 'shapes'.")
    return stamp


class _Images:
    """Writes the images and both PNGs of a split; items are what the jsons say of an image."""

    def __init__(self, folder: Path, split: str, params: ShapesParams):
        self.folder, self.split, self.params = folder, split, params

    def __len__(self) -> int:
        return self.params.count(self.split)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        drawing = draw_image(self.params.seed, self.split, index)
        image = _write_image(self.folder / self.split, index, drawing)
        objects = [
            {"category_id": int(thing) + 1, **describe_mask(mask)}
            for mask, thing in zip(drawing.masks, drawing.classes, strict=True)
        ]
        name = f"{index:012d}.png"
        segments = _write_panoptic(self.folder, self.split, name, drawing, objects)
        return image, objects, {"file_name": name, "segments_info": segments}


def _in_processes(items: _Images) -> Iterator[tuple[Any, Any, Any]]:
    """All items in order, made in one process for each core."""
    from torch.utils.data import DataLoader  # seconds that a few images need not wait for

    yield from DataLoader(cast(Any, items), batch_size=None, num_workers=num_workers())


def _write_split(folder: Path, split: str, params: ShapesParams) -> None:
    """Write images, stuff maps and both jsons of a split, in one process for each core."""
    for name in (split, f"panoptic_{split}", f"panoptic_stuff_{split}", "annotations"):
        (folder / name).mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    items = _Images(folder, split, params)
    made = (
        _in_processes(items)
        if len(items) >= WORTH_WORKERS
        else map(items.__getitem__, range(len(items)))
    )
    progress = tqdm(made, f"shapes {split}", len(items), unit="image", mininterval=1.0)
    for image, objects, segments in progress:
        images.append(image)
        for item in objects:
            instances.append({"id": len(instances) + 1, "image_id": image["id"], **item})
        panoptic.append({"image_id": image["id"], **segments})
    info = {"description": f"Generated shapes, {split}", **params.stamp()}
    common = {"info": info, "licenses": [], "images": images}
    categories = [
        {"id": index + 1, "name": name, "supercategory": "shape"}
        for index, name in enumerate(THING_CLASSES)
    ]
    parts = ("instances", instances, categories), ("panoptic", panoptic, CATEGORIES)
    for kind, annotations, classes in parts:
        content = {**common, "annotations": annotations, "categories": classes}
        (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def _write_image(folder: Path, index: int, drawing: Drawing) -> dict[str, Any]:
    """Write the pixels of an image; its entry in COCO's format."""
    name = f"{index:012d}.jpg"
    bgr = np.ascontiguousarray(drawing.image[..., ::-1])
    (folder / name).write_bytes(cv2.imencode(".jpg", bgr, JPEG_PARAMS)[1].tobytes())
    height, width = drawing.stuff.shape
    return {"id": index + 1, "file_name": name, "height": height, "width": width}


def _write_panoptic(
    folder: Path, split: str, name: str, drawing: Drawing, objects: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write both PNGs of an image; its segments, numbered from 1: objects, then stuff by class."""
    ids = np.zeros(drawing.stuff.shape, np.int32)
    for number, mask in enumerate(drawing.masks, start=1):
        ids[mask] = number
    labels = np.where(ids == 0, drawing.stuff + 1, 0).astype(np.uint8)
    described = [*objects]
    for label in np.unique(labels[labels > 0]).tolist():
        described.append(
            {"category_id": len(THING_CLASSES) + label, **describe_mask(labels == label)}
        )
        ids[labels == label] = len(described)
    write_segment_ids(folder / f"panoptic_{split}" / name, ids)
    write_image(folder / f"panoptic_stuff_{split}" / name, Image.fromarray(labels), format="PNG")
    return [
        {"id": number, **{key: item[key] for key in item if key != "segmentation"}}
        for number, item in enumerate(described, start=1)
    ]
