"""The results of a model for an image, in the forms that programs use.

Shape letters: N instances, H and W rows and columns of the image.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor

from solo_d2.api.classes import Classes
from solo_d2.data.panoptic_json import write_segment_ids
from solo_d2.ops.host_copies import to_host
from solo_d2.ops.mask_crops import Window, crops_of, stack_masks, whole_masks
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.rle import encode_masks
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import whole_file
from solo_d2.visualization import overlay
from solo_d2.visualization.colors import Color, instance_color


@dataclass(frozen=True)
class Segmentation:
    """A panoptic segmentation.

    Attributes:
        ids: (H, W) int32, 0 where there is no segment.
        segments: what the model says of each, see `merge_panoptic`.
    """

    ids: Tensor
    segments: list[dict[str, Any]]

    def things(self) -> Instances:
        """Return the instances, with their pixels in the segmentation."""
        segments = [segment for segment in self.segments if segment["isthing"]]
        things = self._instances(segments)
        things.scores = torch.tensor([segment["score"] for segment in segments]).float()
        if all("track_id" in segment for segment in segments):
            things.track_ids = torch.tensor([segment["track_id"] for segment in segments]).long()
        return things

    def stuff(self) -> Instances:
        """Return the stuff segments, without scores."""
        return self._instances([segment for segment in self.segments if not segment["isthing"]])

    def _instances(self, segments: Sequence[dict[str, Any]]) -> Instances:
        numbers = torch.tensor([segment["id"] for segment in segments], dtype=torch.int32)
        masks = self.ids == numbers.to(self.ids.device)[:, None, None]
        classes = torch.tensor([segment["category_id"] for segment in segments]).long()
        return Instances(
            tuple(self.ids.shape),
            pred_masks=masks,
            pred_boxes=Boxes(mask_boxes(masks)),
            pred_classes=classes,
        )


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """The result of a model for an image. `len(result)` is the number of instances.

    Attributes:
        instances: Detectron2's, best first, with pred_masks (N, H, W) bool, pred_boxes (about the
            masks), scores and pred_classes. Of tiled inference pred_masks is a
            `solo_d2.ops.mask_crops.MaskCrops`, whose `whole()` is that tensor.
        image: (H, W, 3) uint8 RGB, what it was found in.
        name: of the image's file; "" if it is from none.
        classes: names and category ids of the classes.
        stuff: those of stuff; None if the model is not panoptic.
        panoptic: the segmentation; None if the model is not panoptic.
        contours: whether the masks are contours.
    """

    instances: Instances
    image: NDArray[np.uint8]
    name: str
    classes: Classes
    stuff: Classes | None = None
    panoptic: Segmentation | None = None
    contours: bool = False

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        height, width = self.instances.image_size
        return height, width

    def __repr__(self) -> str:
        height, width = self.image_size
        found = ", ".join(overlay.instance_labels(self.instances, self.classes.names)) or "nothing"
        return f"<Result {self.name or 'image'} ({height} x {width}): {found}>"

    def filtered(
        self, least_score: float, class_indices: Collection[int] | None = None
    ) -> "Result":
        """Return a copy with only some of the instances; panoptic stuff is kept.

        Args:
            least_score: minimum score of the instances to keep.
            class_indices: classes of the instances to keep; None for all.
        """
        if any(isinstance(index, str) for index in class_indices or ()):
            raise ValueError(
                "class_indices must be numbers: use result.classes.names.index(name) for a name"
            )
        keep = self.instances.scores >= least_score
        classes = self.instances.pred_classes
        if class_indices is not None:
            keep &= torch.isin(classes, torch.tensor([*class_indices], device=classes.device))
        segments = [
            segment
            for segment in self._segments
            if not segment["isthing"]
            or segment["score"] >= least_score
            and (class_indices is None or segment["category_id"] in class_indices)
        ]
        return self._with(self.instances[keep], segments)

    def tracked(self, numbers: Sequence[int]) -> "Result":
        """Return a copy with a `track_id` for each instance, which sets its colour.

        Args:
            numbers: N track ids, see `solo_d2.visualization.tracker`.
        """
        instances = self.instances[:]
        instances.track_ids = torch.tensor(numbers, dtype=torch.int64)
        segments = [
            {**segment, "track_id": numbers[segment["instance_id"]]}
            if segment["isthing"]
            else segment
            for segment in self._segments
        ]
        return self._with(instances, segments)

    @property
    def _segments(self) -> list[dict[str, Any]]:
        return [] if self.panoptic is None else self.panoptic.segments

    def _with(self, instances: Instances, segments: list[dict[str, Any]]) -> "Result":
        panoptic = self.panoptic and replace(self.panoptic, segments=segments)
        return replace(self, instances=instances, panoptic=panoptic)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Convert the instances to dicts without torch and Detectron2.

        Returns:
            Dicts with class_name, class_index, category_id, score, box (XYXY in pixels, right and
            lower edge exclusive), mask, (H, W) bool of NumPy, and track_id if there is one.
        """
        (masks,) = to_host([whole_masks(self.instances.pred_masks)])
        return [
            {
                "class_name": self.classes.names[index],
                "class_index": index,
                "category_id": self.classes.json_ids[index],
                "score": score,
                "box": box,
                "mask": mask,
                **track,
            }
            for (index, score, box, track), mask in zip(self._entries(), masks.numpy(), strict=True)
        ]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Convert the instances to COCO results, ready for json.

        Args:
            image_id: the image's number.

        Returns:
            Dicts with image_id, file_name, category_id, bbox (XYWH), score, segmentation (RLE), and
            track_id if there is one.
        """
        codes = encode_masks(self.instances.pred_masks)
        return [
            {
                "image_id": image_id,
                "file_name": self.name,
                "category_id": self.classes.json_ids[index],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                **track,
            }
            for (index, score, box, track), code in zip(self._entries(), codes, strict=True)
        ]

    def _entries(self) -> Iterator[tuple[int, float, list[float], dict[str, int]]]:
        """Yield class, score, box and, if there is one, the track of each instance."""
        found = self.instances
        tracks: list[dict[str, int]] = [{} for _ in range(len(self))]
        if found.has("track_ids"):
            tracks = [{"track_id": number} for number in found.track_ids.tolist()]
        fields = to_host([found.pred_classes, found.scores, found.pred_boxes.tensor])
        classes, scores, boxes = (field.tolist() for field in fields)
        return zip(classes, scores, boxes, tracks, strict=True)

    def polygons(self) -> list[list[list[float]]]:
        """Return the outlines of each mask, as COCO's polygons.

        Polygons cannot have holes: those of a mask are filled. Parts of less than three corners are
        left out. `to_coco` is exact.

        Returns:
            For each instance its parts, each [x, y, x, y, ...] in pixels.
        """
        crops = crops_of(self.instances.pred_masks).to("cpu")
        return [_polygons(*mask) for mask in zip(crops.parts(), crops.windows, strict=True)]

    def label_map(self, kind: str = "instances") -> NDArray[np.int32]:
        """Return the instance, or the class, that each pixel belongs to.

        Args:
            kind: "instances" numbers them from 1, best first; "classes" gives class index + 1.

        Returns:
            (H, W) int32, 0 where there is no instance; where masks overlap, the better one has the
            pixel.
        """
        if kind not in ("instances", "classes"):
            raise ValueError(f"kind must be 'instances' or 'classes', not {kind!r}")
        order = range(len(self) - 1, -1, -1)  # the best on top
        boxes = self.instances.pred_boxes.tensor
        on_top = stack_masks(self.instances.pred_masks, boxes, order).cpu().numpy()
        labels = np.arange(len(self), -1, -1) + 1  # of 1, 2, ... in `order`
        if kind == "classes":
            labels[1:] = self.instances.pred_classes.cpu().numpy()[::-1] + 1
        labels[0] = 0
        return labels.astype(np.int32)[on_top]

    def save_panoptic(self, path: str | Path) -> list[dict[str, Any]]:
        """Write the panoptic segmentation as COCO's PNG of segment ids.

        Args:
            path: the PNG, written atomically.

        Returns:
            The segments_info of the PNG: dicts with id, category_id and, of things, score (and
            track_id if there is one).

        Raises:
            ConfigError: the model is not panoptic, or the file is no PNG.
        """
        if Path(path).suffix.lower() != ".png":
            raise ConfigError(f"{path} must end in .png: other formats do not keep segment ids")
        if self.panoptic is None or self.stuff is None:
            raise ConfigError(
                "A panoptic PNG needs a panoptic model, and this model is not panoptic"
            )
        with whole_file(path) as temporary:
            write_segment_ids(temporary, self.panoptic.ids.cpu().numpy())
        ids = {True: self.classes.json_ids, False: self.stuff.json_ids}
        return [
            {
                "id": segment["id"],
                "category_id": ids[segment["isthing"]][segment["category_id"]],
                **{key: segment[key] for key in ("score", "track_id") if key in segment},
            }
            for segment in self.panoptic.segments
        ]

    def draw(self, *, publication: bool = False, **options: Any) -> NDArray[np.uint8]:
        """Draw the result over the image.

        Args:
            publication: by Detectron2's Visualizer, for print: much slower.
            **options: scale, draw_boxes, labels and colors, see `solo_d2.visualization.overlay`.

        Returns:
            (scale * H, scale * W, 3) uint8 RGB.
        """
        drawing: Any = overlay
        if publication:
            from solo_d2.visualization import publication as drawing
        found, stuff = self.instances.to("cpu") if publication else self.instances, None
        if self.panoptic is not None:
            shown = Segmentation(self.panoptic.ids.cpu(), self.panoptic.segments)
            found, stuff = shown.things(), shown.stuff()
        return drawing.draw_instances(
            self.image,
            found,
            self.classes.names,
            stuff=stuff,
            stuff_names=self.stuff.names if self.stuff else (),
            **{"colors": _track_colors(found), "contours": self.contours, **options},
        )


def _track_colors(instances: Instances) -> list[Color] | None:
    if not instances.has("track_ids"):
        return None
    return [instance_color(number) for number in instances.track_ids.tolist()]


def _polygons(part: Tensor, window: Window) -> list[list[float]]:
    if not part.numel():
        return []
    pixels = np.ascontiguousarray(part.numpy()).view(np.uint8)
    lines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # From indices of pixels to their centres.
    offset = (window[0] + 0.5, window[1] + 0.5)
    return [(line[:, 0] + offset).flatten().tolist() for line in lines if len(line) >= 3]
