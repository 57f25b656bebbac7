"""Results of the demo other than pictures: JSON, masks, panoptic segments."""

import json
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from solo_d2 import ConfigError
from solo_d2.api.classes import Classes
from solo_d2.api.images import require_writable
from solo_d2.api.results import Result
from solo_d2.utils.files import save_text, whole_file

# JSON file for the PNGs of --panoptic, and their folder.
JSON_NAME, PNG_FOLDER = "panoptic.json", "panoptic"


def check_places(args: Namespace) -> None:
    """Raise an error before the work if a result cannot be written."""
    for place in (
        args.json,
        args.save_masks and Path(args.save_masks) / "a.png",
        args.panoptic and Path(args.panoptic) / JSON_NAME,
    ):
        if place:
            require_writable(Path(place))


@dataclass
class Records:
    """Write the results for --json, --save-masks and --panoptic."""

    args: Namespace
    classes: Classes  # things
    stuff: Classes | None  # None if the model is not panoptic
    num_instances: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)  # in COCO format
    images: list[dict[str, Any]] = field(default_factory=list)  # of the panoptic JSON
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.args.panoptic and self.stuff is None:
            raise ConfigError("--panoptic needs a panoptic model")

    def add(self, image_id: int, png: str, result: Result) -> None:
        """Write the PNGs of an image and collect its other results."""
        if self.args.save_masks:
            save_masks(Path(self.args.save_masks) / png, result)
        if self.args.panoptic:
            path = Path(self.args.panoptic) / PNG_FOLDER / png
            segments = result.save_panoptic(path)
            height, width = result.image_size
            self.images.append(
                {"id": image_id, "file_name": result.name, "height": height, "width": width}
            )
            self.annotations.append(
                {"image_id": image_id, "file_name": png, "segments_info": segments}
            )
        if self.args.json:
            self.results += result.to_coco(image_id)
        self.num_instances += len(result)

    def close(self) -> None:
        """Write the JSON files."""
        if self.args.json:
            save_text(self.args.json, json.dumps(self.results, allow_nan=False))
        if self.args.panoptic:
            assert self.stuff is not None
            content = {"images": self.images, "annotations": self.annotations}
            content["categories"] = [
                {"id": json_id, "name": name, "isthing": int(isthing)}
                for isthing, classes, first in ((True, self.classes, 0), (False, self.stuff, 1))
                for json_id, name in zip(
                    classes.json_ids[first:], classes.names[first:], strict=True
                )
            ]
            save_text(Path(self.args.panoptic) / JSON_NAME, json.dumps(content, allow_nan=False))

    def report(self, done: str) -> None:
        """Print a summary and the output paths."""
        args = self.args
        places = (args.output, args.json, args.save_masks, args.panoptic)
        named = ", ".join(str(place) for place in places if place)
        print(f"{done}, {self.num_instances} instances" + (f" -> {named}" if named else ""))


def save_masks(path: Path, result: Result) -> None:
    """Write `Result.label_map` as a 16-bit PNG."""
    ok, content = cv2.imencode(".png", result.label_map().astype(np.uint16))
    if not ok:
        raise OSError(f"{path}: cannot be written as PNG")
    with whole_file(path) as temporary:
        temporary.write_bytes(content.tobytes())
