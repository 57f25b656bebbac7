"""The data set `shapes` on disk: written once, whole or not at all, by one process at a time.

Layout, in COCO format:

    DIR/dataset.json                      what was made: generator version, seed, counts
    DIR/train/000000000000.jpg ...        images
    DIR/val/...
    DIR/annotations/instances_train.json
    DIR/annotations/instances_val.json

and the panoptic annotations, see `panoptic`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from solo_d2.data.locations import datasets_root
from solo_d2.data.panoptic_conversion import describe_mask
from solo_d2.data.shapes.drawing import SPLITS, THING_CLASSES, draw_image
from solo_d2.data.shapes.panoptic import add_panoptic, has_panoptic, write_panoptic
from solo_d2.data.whole_folder import NEW, OLD, only_writer, sibling
from solo_d2.utils.errors import DatasetError

# Raise it whenever the same seed gives other images or annotations.
GENERATOR_VERSION = 1
STAMP = "dataset.json"
# Colours as sharp as the outlines: by default JPEG halves their resolution.
JPEG_PARAMS = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
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

    Safe to call from many processes at once: one writes, the others wait for it.

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
            if not _is_ready(root, params, force):
                _write_and_rename(root, params or ShapesParams())
    except OSError as error:
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
    if found == wanted:
        return True
    if force:
        return False
    differences = ", ".join(
        f"{key} is {found.get(key)}, wanted {wanted[key]}"
        for key in wanted
        if found.get(key) != wanted[key]
    )
    sizes = params or ShapesParams(
        **{k: v for k, v in found.items() if k in asdict(ShapesParams())}
    )
    raise DatasetError(
        f"The data set 'shapes' in {root.absolute()} is another one: {differences}. Make it anew "
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


def _write_and_rename(root: Path, params: ShapesParams) -> None:
    replace = (root / STAMP).exists()
    with sibling(root) as work:
        new, old = work / NEW, work / OLD
        new.mkdir()
        for split in SPLITS:
            _write_split(new, split, params)
        (new / STAMP).write_text(json.dumps(params.stamp(), indent=2) + "\n")
        if replace:
            root.rename(old)
        try:
            new.rename(root)
        except OSError:
            # Another writer was first (possible only without locks): its folder will do.
            if not (root / STAMP).is_file() or not _is_ready(root, params, force=False):
                raise


def ensure_panoptic(root: Path | str) -> None:
    """Add the panoptic annotations to a data set that was written by an earlier version.

    They follow from what is there; nothing else is changed. Cheap when they are there; safe to call
    from many processes at once.

    Args:
        root: folder of a data set that `ensure_shapes` has made or accepted.

    Raises:
        DatasetError: they cannot be written.
    """
    root = Path(root)
    if has_panoptic(root):
        return
    try:
        with only_writer(root):
            seed = _read_stamp(root / STAMP)["seed"]
            with sibling(root) as work:
                for split in SPLITS:
                    add_panoptic(root, work, split, seed)
    except OSError as error:
        raise DatasetError(
            f"The panoptic annotations of the data set 'shapes' cannot be added to "
            f"{root.absolute()}: {error}. Name another folder by DETECTRON2_DATASETS"
        ) from error


def _write_split(folder: Path, split: str, params: ShapesParams) -> None:
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    indices = range(params.count(split))
    for index in tqdm(indices, f"shapes {split}", unit="image", mininterval=1.0):
        image, objects = _write_image(folder, split, params.seed, index)
        images.append(image)
        for item in objects:
            annotations.append({"id": len(annotations) + 1, **item})
    content = {
        "info": {"description": f"Generated shapes, {split}", **params.stamp()},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": index + 1, "name": name, "supercategory": "shape"}
            for index, name in enumerate(THING_CLASSES)
        ],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    write_panoptic(folder, split, params.seed)


def _write_image(
    folder: Path, split: str, seed: int, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw and write one image; its COCO entry, and those of its objects without ids."""
    drawing = draw_image(seed, split, index)
    name = f"{index:012d}.jpg"
    bgr = np.ascontiguousarray(drawing.image[..., ::-1])
    encoded = cv2.imencode(".jpg", bgr, JPEG_PARAMS)[1]
    (folder / split / name).write_bytes(encoded.tobytes())
    height, width = drawing.stuff.shape
    image = {"id": index + 1, "file_name": name, "height": height, "width": width}
    objects = [
        {"image_id": index + 1, "category_id": int(thing) + 1, **describe_mask(mask)}
        for mask, thing in zip(drawing.masks, drawing.classes, strict=True)
    ]
    return image, objects
