"""Write the data set `shapes` in COCO format: once, atomically, by one process at a time.

Layout:

    DIR/dataset.json                      generator version, seed, numbers of images
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

# Increment it if the same seed gives other images or annotations.
GENERATOR_VERSION = 1
STAMP = "dataset.json"
# Full resolution of colours, which JPEG halves by default.
JPEG_PARAMS = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)
# Number of images from which worker processes pay off.
WORTH_WORKERS = 200
# RGB of the thing and stuff classes in overlays.
THING_COLORS = (
    *((230, 60, 60), (60, 140, 230), (245, 180, 40), (170, 80, 220), (60, 190, 90)),
    *((240, 120, 190), (70, 200, 210)),
)
_STUFF_COLORS = ((150, 195, 240), (110, 160, 60), (40, 90, 150), (165, 95, 70))
# Categories of the panoptic json: things, then stuff.
CATEGORIES = tuple(
    {"id": index, "name": name, "isthing": int(name in THING_CLASSES), "color": list(color)}
    for index, (name, color) in enumerate(
        zip(THING_CLASSES + STUFF_CLASSES, THING_COLORS + _STUFF_COLORS, strict=True), start=1
    )
)


@dataclass(frozen=True)
class ShapesParams:
    """Parameters of a data set: number of images of each split, and the seed."""

    num_train: int = 3000
    num_val: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if value < 0:
                raise ValueError(f"{key} must not be negative, it is {value}")

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return {"train": self.num_train, "val": self.num_val}[split]

    def stamp(self) -> dict[str, Any]:
        """Return the content of the stamp file."""
        return {"dataset": "shapes", "generator_version": GENERATOR_VERSION, **asdict(self)}


def default_root() -> Path:
    """Return `shapes` in Detectron2's folder of data sets (DETECTRON2_DATASETS)."""
    return datasets_root() / "shapes"


def ensure_shapes(
    root: Path | str | None = None,
    params: ShapesParams | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write the data set unless it exists.

    If several processes call it at once, one writes and the others wait.

    Args:
        root: the data set's folder, `default_root()` if None.
        params: of the data set; None accepts any existing counts and seed, or writes the defaults.
        force: replace a data set of other parameters or another generator version.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder contains something else, or cannot be written.
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
        # Without file locks, another process may have written the folder meanwhile.
        if (root / STAMP).is_file() and _is_ready(root, params, force=False):
            return root
        raise DatasetError(
            f"The data set 'shapes' cannot be written to {root.absolute()}: {error}. Set "
            "DETECTRON2_DATASETS to a folder with 60 MB of free space, or run "
            "'python -m solo_d2.data.shapes --output DIR'."
        ) from error
    return root


def _is_ready(root: Path, params: ShapesParams | None, force: bool) -> bool:
    """Return whether the folder contains this data set; raise if it contains anything else."""
    if not root.exists():
        return False
    if not (root / STAMP).is_file():
        if root.is_dir() and not any(root.iterdir()):
            return False
        raise DatasetError(
            f"{root.absolute()} exists, but is not a generated data set 'shapes' (it has no "
            f"{STAMP}). Move it away, or choose another folder."
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
        f"The data set 'shapes' in {root.absolute()} differs: {differences}. Replace it "
        f"with 'python -m solo_d2.data.shapes --output {root} --num-train {sizes.num_train} "
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
    """Writes the images and both PNGs of a split; its items are the json entries of an image."""

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
    """Yield all items in order, made in one process per core."""
    from torch.utils.data import DataLoader  # takes seconds to import

    yield from DataLoader(cast(Any, items), batch_size=None, num_workers=num_workers())


def _write_split(folder: Path, split: str, params: ShapesParams) -> None:
    """Write images, PNGs and both jsons of a split."""
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
    """Write an image file; return its entry in COCO's format."""
    name = f"{index:012d}.jpg"
    bgr = np.ascontiguousarray(drawing.image[..., ::-1])
    (folder / name).write_bytes(cv2.imencode(".jpg", bgr, JPEG_PARAMS)[1].tobytes())
    height, width = drawing.stuff.shape
    return {"id": index + 1, "file_name": name, "height": height, "width": width}


def _write_panoptic(
    folder: Path, split: str, name: str, drawing: Drawing, objects: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write both PNGs of an image; return its segments: objects, then stuff, from id 1."""
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
