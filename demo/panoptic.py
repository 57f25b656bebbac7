"""Panoptic results of the demo: what stuff is called, segments as masks, COCO's panoptic format."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import Tensor

from demo.images import output_names, whole_file
from demo.predictor import Classes
from solo_d2 import ConfigError, DatasetError
from solo_d2.data.panoptic_format import fill_metadata
from solo_d2.data.panoptic_json import write_segment_ids
from solo_d2.data.stuff_classes import is_panoptic
from solo_d2.ops.mask_geometry import mask_boxes

# The file with what the PNGs mean, beside their folder.
JSON_NAME, PNG_FOLDER = "panoptic.json", "panoptic"


def lacks_num_labels(cfg: CfgNode) -> bool:
    """Whether the model is panoptic, and the number of its labels is still to be found."""
    return is_panoptic(cfg) and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0


def find_stuff(cfg: CfgNode, things: Classes) -> Classes | None:
    """Names and category ids of the labels of stuff, from metadata; None for other models.

    Where they are unknown the names are "stuff 1", "stuff 2", ..., and the ids follow those of
    things. The first entry stands for label 0, all things.
    """
    if not is_panoptic(cfg):
        return None
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name not in MetadataCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        if metadata.get("panoptic_json") is not None:
            try:
                fill_metadata(name)
            except DatasetError as error:
                print(f"Names of stuff: {error}", file=sys.stderr)
        names = metadata.get("stuff_classes")
        labels = metadata.get("stuff_dataset_id_to_contiguous_id")
        if names is not None and labels is not None and len(names) == count:
            ids = {label: json_id for json_id, label in labels.items()}
            return Classes(list(names), [ids[label] for label in range(count)])
    names = ["things", *(f"stuff {label}" for label in range(1, count))]
    last = max(things.json_ids)
    return Classes(names, list(range(last, last + count)))


@dataclass(frozen=True)
class Segmentation:
    """A panoptic segmentation, on the CPU.

    Attributes:
        ids: (H, W) int32, 0 where there is no segment.
        segments: what the model says of each, see `merge_panoptic`.
    """

    ids: Tensor
    segments: list[dict[str, Any]]

    @classmethod
    def of(cls, output: dict[str, Any]) -> "Segmentation":
        """That of a model's output for an image."""
        ids, segments = output["panoptic_seg"]
        return cls(ids.cpu(), segments)

    def things(self) -> Instances:
        """The instances, with the pixels that they have in the segmentation."""
        segments = [segment for segment in self.segments if segment["isthing"]]
        things = self._instances(segments)
        things.scores = torch.tensor([segment["score"] for segment in segments])
        return things

    def stuff(self) -> Instances:
        """The segments of stuff, without scores."""
        return self._instances([segment for segment in self.segments if not segment["isthing"]])

    def _instances(self, segments: Sequence[dict[str, Any]]) -> Instances:
        numbers = torch.tensor([segment["id"] for segment in segments], dtype=torch.int32)
        masks = self.ids == numbers[:, None, None]
        classes = torch.tensor([segment["category_id"] for segment in segments]).long()
        return Instances(
            tuple(self.ids.shape),
            pred_masks=masks,
            pred_boxes=Boxes(mask_boxes(masks)),
            pred_classes=classes,
        )


@dataclass
class SegmentWriter:
    """Writes segmentations in COCO's panoptic format: a PNG for each image, then the json.

    Attributes:
        folder: for the json and the folder of the PNGs.
        names: of the PNGs, by image.
        classes: gives the category ids of things.
        stuff: gives those of stuff.
        images: entries of the json so far.
        annotations: likewise.
    """

    folder: Path
    names: dict[Path, str]
    classes: Classes
    stuff: Classes
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(
        cls, folder: str, files: Sequence[Path], classes: Classes, stuff: Classes | None
    ) -> "SegmentWriter":
        """Choose a name for the PNG of each image.

        Args:
            folder: for the json and the folder of the PNGs.
            files: the images, each once.
            classes: gives the category ids of things.
            stuff: gives those of stuff.

        Raises:
            ConfigError: `stuff` is None.
        """
        if stuff is None:
            raise ConfigError("--panoptic needs a panoptic model, and the config's is none")
        names = output_names([file.with_suffix(".png") for file in files])
        return cls(Path(folder), dict(zip(files, names, strict=True)), classes, stuff)

    def write(self, image_id: int, file: Path, found: Segmentation) -> None:
        """Write the PNG of an image, and remember what it means.

        Args:
            image_id: the image's number.
            file: the image.
            found: its segments.
        """
        height, width = found.ids.shape
        name = self.names[file]
        with whole_file(self.folder / PNG_FOLDER / name) as path:
            write_segment_ids(path, found.ids.numpy())
        image = {"id": image_id, "file_name": str(file), "height": height, "width": width}
        segments = [self._describe(segment) for segment in found.segments]
        self.images.append(image)
        self.annotations.append(
            {"image_id": image_id, "file_name": name, "segments_info": segments}
        )

    def _describe(self, segment: dict[str, Any]) -> dict[str, Any]:
        classes = self.classes if segment["isthing"] else self.stuff
        entry = {"id": segment["id"], "category_id": classes.json_ids[segment["category_id"]]}
        return {**entry, "score": segment["score"]} if segment["isthing"] else entry

    def close(self) -> None:
        """Write the json."""
        categories = [
            {"id": json_id, "name": name, "isthing": int(isthing)}
            for isthing, classes, first in ((True, self.classes, 0), (False, self.stuff, 1))
            for json_id, name in zip(classes.json_ids[first:], classes.names[first:], strict=True)
        ]
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        with whole_file(self.folder / JSON_NAME) as path:
            path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
