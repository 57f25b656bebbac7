"""The data set `shapes` on disk: written once, whole or not at all, by one process at a time.

Layout, in COCO format:

    DIR/dataset.json                      what was made: generator version, seed, counts
    DIR/train/000000000000.jpg ...        images
    DIR/val/...
    DIR/annotations/instances_train.json
    DIR/annotations/instances_val.json

A writer fills a temporary sibling folder and renames it, holding a lock file beside DIR that the
system frees when the process dies; the next writer removes what a dead one left.
"""

import contextlib
import fcntl
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from solo_d2.data.locations import datasets_root
from solo_d2.data.shapes.drawing import SPLITS, THING_CLASSES, draw_image
from solo_d2.errors import DatasetError

logger = logging.getLogger(__name__)

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
        root.parent.mkdir(parents=True, exist_ok=True)
        with _lock(root) as locked:
            if not _is_ready(root, params, force):
                if locked:
                    _remove_leftovers(root)
                _write_and_rename(root, params or ShapesParams())
    except OSError as error:
        raise DatasetError(
            f"The data set 'shapes' cannot be written to {root.absolute()}: {error}. Name a folder "
            "with some 50 MB of room by DETECTRON2_DATASETS, or write it by "
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


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[bool]:
    """Hold the lock file beside `root`; False where the file system knows no locks.

    Without locks two writers may work side by side: the second to finish gives way.
    """
    with open(root.parent / f".{root.name}.lock", "w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Waiting for another process that writes %s", root)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _remove_leftovers(root: Path) -> None:
    """Remove what writers left that died. Only with the lock: then no writer is alive."""
    for path in root.parent.glob(f".{root.name}.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _write_and_rename(root: Path, params: ShapesParams) -> None:
    replace = (root / STAMP).exists()
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.tmp-", dir=root.parent))
    try:
        new, old = work / "new", work / "old"
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
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
        {"image_id": index + 1, "category_id": int(thing) + 1, **_describe_mask(mask)}
        for mask, thing in zip(drawing.masks, drawing.classes, strict=True)
    ]
    return image, objects


def _describe_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's fields of a mask (H, W): compressed RLE, tight XYWH box, area."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }
