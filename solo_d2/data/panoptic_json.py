"""Read and check COCO's panoptic format: the JSON and the PNGs of segment ids.

Each image has a PNG with the segment id of each pixel, R + 256 G + 65536 B, 0 for no segment; the
JSON lists the segments. Does not import Detectron2. Shape letters: H W rows and columns.
"""

import os
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from solo_d2.data.coco_json import (
    CATEGORY_ID,
    FIELDS,
    ISCROWD,
    Field,
    in_order,
    is_id,
    is_name,
    is_whole,
    read_lists,
    read_sorted_categories,
    require_possible_size,
    some,
    sorted_categories,
    usable_entries,
)
from solo_d2.data.image_folder import ImageFolder, leaves_folder
from solo_d2.data.label_pngs import opened_labels, require_size
from solo_d2.data.problems import SKIPPED, Problem, Refusal, Report, refuse_errors, reporting
from solo_d2.data.segmentations import is_number
from solo_d2.utils.errors import DatasetError, shown
from solo_d2.utils.images import write_image

# Ids are below this: they have three channels of 8 bits.
MAX_ID = 256**3
# Pillow's modes of PNGs of segment ids.
_PNG_MODES = ("RGB", "RGBA", "P")
# Pixels without a segment, in a stuff map.
IGNORE_LABEL = 255
# Kind of problem of an image without an annotation.
WITHOUT_ENTRY = "panoptic image without an entry"
# Name of stuff class 0, all pixels of things.
THINGS = "things"
_CATEGORY_FIELDS = (
    Field(
        "id", "a text, or a whole number other than 0 (no segment)", lambda v: is_id(v) and v != 0
    ),
    *FIELDS["categories"][1:],
    Field("isthing", "0 or 1, as in a panoptic file", lambda value: value in (0, 1)),
)
_SEGMENT_FIELDS = (
    Field("id", f"a whole number from 1 to {MAX_ID - 1}", lambda v: is_whole(v) and 0 < v < MAX_ID),
    CATEGORY_ID,
    ISCROWD,
)


@dataclass(frozen=True)
class PanopticCategories:
    """Categories of a panoptic json, each list sorted by id."""

    things: list[dict[str, Any]]
    stuff: list[dict[str, Any]]

    @property
    def thing_ids(self) -> dict[int | str, int]:
        """Thing class, 0 to K - 1, by category id."""
        return {category["id"]: index for index, category in enumerate(self.things)}

    @property
    def stuff_ids(self) -> dict[int | str, int]:
        """Stuff class, 1 to S, by category id; class 0 means all things."""
        return {category["id"]: index for index, category in enumerate(self.stuff, start=1)}

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of Detectron2's "separated" panoptic data sets."""
        entries: dict[str, Any] = {
            "thing_classes": [category["name"] for category in self.things],
            "stuff_classes": [THINGS, *(category["name"] for category in self.stuff)],
            "thing_dataset_id_to_contiguous_id": self.thing_ids,
            "stuff_dataset_id_to_contiguous_id": {**self.stuff_ids, 0: 0},
            "ignore_label": IGNORE_LABEL,
        }
        if all(_is_color(category.get("color")) for category in (*self.things, *self.stuff)):
            entries["thing_colors"] = [list(category["color"]) for category in self.things]
            colors = [list(category["color"]) for category in self.stuff]
            entries["stuff_colors"] = [[128, 128, 128], *colors]
        return entries


@dataclass(frozen=True)
class PanopticJson:
    """A checked panoptic JSON: entries of 'images' and 'annotations' by image id.

    Segments always have `iscrowd`. Images without an annotation are missing in `annotations`.
    """

    categories: PanopticCategories
    images: dict[int | str, dict[str, Any]]
    annotations: dict[int | str, dict[str, Any]]


def read_categories(json_file: str | Path) -> PanopticCategories:
    """Read the categories of a panoptic JSON; DatasetError if they are invalid."""
    return split_categories(json_file, read_sorted_categories(json_file, _CATEGORY_FIELDS))


def split_categories(
    json_file: str | Path, categories: Sequence[dict[str, Any]]
) -> PanopticCategories:
    """Split sorted categories; DatasetError without things or with too many stuff classes."""
    things, stuff = ([c for c in categories if c["isthing"] == kind] for kind in (1, 0))
    if not things:
        raise DatasetError(f"{json_file}: no category has 'isthing' 1, so there are no instances")
    if len(stuff) >= IGNORE_LABEL:
        raise DatasetError(
            f"{json_file} has {len(stuff)} stuff categories, but at most {IGNORE_LABEL - 1} are "
            "supported"
        )
    return PanopticCategories(things, stuff)


def _is_color(value: Any) -> bool:
    three = isinstance(value, list) and len(value) == 3
    return three and all(is_number(channel) and 0 <= channel <= 255 for channel in value)


def read_panoptic_json(
    json_file: str | Path,
    name: str = "",
    png_root: str | Path | None = None,
    report: Report | None = None,
) -> PanopticJson:
    """Read and check a panoptic JSON without reading the PNGs.

    Args:
        json_file: the file.
        name: name of the data set, for messages.
        png_root: folder where `ImageFolder` looks up the names of the PNGs; None to keep the names.
        report: receives the problems of images, which are then skipped; None to raise them.

    Raises:
        DatasetError: a problem; the message names file, image and segment.
    """
    refuse = refuse_errors(json_file)
    report = report or refuse
    content = read_lists(json_file, report, name, panoptic=True)
    categories = split_categories(
        json_file, sorted_categories(content["categories"], refuse, _CATEGORY_FIELDS)
    )
    images: dict[int | str, dict[str, Any]] = {}
    for image in usable_entries(content["images"], "images", report):
        with reporting(report, f"image {shown(image['id'])}"):
            require_possible_size(image)
            images[image["id"]] = image
    if png_root is not None:
        _look_up_pngs(content["annotations"], png_root)
    known = categories.thing_ids | categories.stuff_ids
    annotations: dict[int | str, dict[str, Any]] = {}
    pngs: set[str] = set()
    for annotation in content["annotations"]:
        where = f"image {shown(annotation.get('image_id'))}"
        with reporting(report, where):
            _check_annotation(annotation, images, annotations, pngs)
            if _check_segments(annotation["segments_info"], known, where, report):
                annotations[annotation["image_id"]] = annotation
                pngs.add(_without_extension(annotation["file_name"]))
    keys = [annotation.get("image_id") for annotation in content["annotations"]]
    listed = {key for key in keys if isinstance(key, (int, str))}
    for key, image in images.items():
        if key not in listed:
            reason = f"{shown(image['file_name'])} has no entry in 'annotations'"
            report(Problem(WITHOUT_ENTRY, f"image {shown(key)}", reason, SKIPPED))
    return PanopticJson(categories, images, annotations)


def _look_up_pngs(annotations: Sequence[dict[str, Any]], png_root: str | Path) -> None:
    """Replace the names of PNGs by those of the files, in place."""
    folder = ImageFolder(png_root)
    for annotation in annotations:
        png = annotation.get("file_name")
        found = folder.find(png) if is_name(png) else None
        if found is not None:
            annotation["file_name"] = os.path.relpath(found, png_root)
    folder.say_unusual()


def _without_extension(png: str) -> str:
    """Return the name that a PNG shares with its stuff map."""
    return os.path.splitext(os.path.normpath(png))[0]


def _check_annotation(
    annotation: dict[str, Any],
    images: Container[Any],
    annotated: Container[Any],
    pngs: Container[str],
) -> None:
    """Raise Refusal for an invalid annotation, or if its image or PNG was used before."""
    key, png = annotation.get("image_id"), annotation.get("file_name")
    if not is_id(key) or key not in images:
        reason = "the 'image_id' of an entry of 'annotations' is not among the 'images'"
        raise Refusal("annotation of an unknown image", reason)
    if key in annotated:
        raise Refusal("image annotated more than once", "has more than one entry in 'annotations'")
    if (
        not is_name(png)
        or os.path.normpath(png) == "."
        or os.path.isabs(png)
        or leaves_folder(png, "")
    ):
        reason = f"'file_name' must be a PNG in the folder, it is {shown(png)}"
        raise Refusal("PNG outside the folder", reason)
    if _without_extension(png) in pngs:
        reason = f"'file_name' is {shown(png)}, which is also the PNG of another image"
        raise Refusal("PNG used more than once", reason)
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(item, dict) for item in segments):
        raise Refusal("segments of another form", "'segments_info' must be a list of objects")


def _check_segments(
    segments: list[dict[str, Any]], known: Collection[Any], where: str, report: Report
) -> bool:
    """Report invalid segments of an image; return whether there are none. Set missing `iscrowd`."""
    checked = usable_entries(
        segments, "segments_info", report, fields=_SEGMENT_FIELDS, within=f"{where}: "
    )
    usable = list(checked)
    unknown = [segment for segment in usable if segment["category_id"] not in known]
    for segment in unknown:
        reason = f"category_id {shown(segment['category_id'])} is not among the 'categories' ("
        place = f"{where}: segment {segment['id']}"
        report(Problem("unknown category", place, reason + some(in_order(known)) + ")"))
    for segment in segments:
        segment.setdefault("iscrowd", 0)
    return not unknown and len(usable) == len(segments)


def read_segment_ids(file: str | Path) -> NDArray[np.int32]:
    """Read the PNG of an image: (H, W) int32 segment ids, 0 for no segment.

    Raises DatasetError if it is missing, damaged, or not 8-bit RGB.
    """
    with opened_labels(file, _PNG_MODES) as image:
        # Lossless compression replaces few colors by a palette.
        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return pixels[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def read_png_size(file: str | Path) -> tuple[int, int]:
    """Read (H, W) of a PNG from its header; see `read_segment_ids`."""
    with opened_labels(file, _PNG_MODES) as image:
        return image.height, image.width


def check_segments(
    file: str | Path, image: dict[str, Any], segments: Sequence[dict[str, Any]]
) -> None:
    """Raise DatasetError unless the PNG of an image has its size and exactly its segments."""
    ids = read_segment_ids(file)
    require_size(file, ids.shape, image)
    segment_runs(file, ids, segments)


def segment_runs(
    file: str | Path, ids: NDArray[np.int32], segments: Sequence[dict[str, Any]]
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Find the runs of equal ids in (H, W) ids, down the columns.

    Returns:
        (R,) ids, 0 for no segment, and (R, 2) first pixels and ends, as in an RLE. Raises
        DatasetError if `file` has an id that is not among the segments, or lacks one.
    """
    flat = ids.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    run_ids = flat[starts]
    found = set(np.unique(run_ids).tolist())
    listed = [segment["id"] for segment in segments]
    unlisted = sorted(found.difference([0, *listed]))
    absent = [key for key in listed if key not in found]
    if unlisted:
        raise DatasetError(f"{file} has segment ids that the JSON does not list: {some(unlisted)}")
    if absent:
        raise DatasetError(f"{file} has no pixel of segments that the JSON lists: {some(absent)}")
    return run_ids, np.stack([starts, np.append(starts[1:], flat.size)], axis=1)


def fill_runs(
    run_ids: NDArray[np.int32],
    runs: NDArray[np.intp],
    values: Mapping[int, int],
    shape: tuple[int, ...],
) -> NDArray[np.int64]:
    """Return (H, W) int64, the value of each pixel's segment id; see `segment_runs`."""
    ids, places = np.unique(run_ids, return_inverse=True)
    run_values = np.array([values[key] for key in ids.tolist()], np.int64)[places]
    return np.repeat(run_values, runs[:, 1] - runs[:, 0]).reshape(shape[::-1]).T


def locate_segments(
    file: str | Path, ids: NDArray[np.int32], segments: Sequence[dict[str, Any]]
) -> NDArray[np.int64]:
    """Return (H, W) int64, the index in `segments` of each pixel, -1 for none."""
    places = {0: -1} | {segment["id"]: index for index, segment in enumerate(segments)}
    return fill_runs(*segment_runs(file, ids, segments), places, ids.shape)


def write_segment_ids(file: str | Path, ids: NDArray[np.integer[Any]]) -> None:
    """Write (H, W) segment ids from 0 to 2^24 - 1 as a PNG."""
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    write_image(file, Image.fromarray(pixels), format="PNG")
