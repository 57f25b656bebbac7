"""Open images as in training, and assign each object to its cells.

Random augmentation is disabled, except for crops: images have their typical size, in a batch of
one.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import TransformList
from detectron2.modeling import build_model
from detectron2.structures import ImageList, Instances
from numpy.typing import NDArray
from torch import Tensor

from solo_d2.data.augmentation import without_randomness
from solo_d2.data.mapper import SOLODatasetMapper, clean_annotation, read_record
from solo_d2.data.problems import NOTICE, SKIPPED, Problem
from solo_d2.data.segmentations import segmentation_box
from solo_d2.ops.mask_geometry import mask_boxes, mask_centers
from solo_d2.targets import assign_cells, assign_grid_targets
from solo_d2.utils.errors import DatasetError, UnreadableImageError

# Outcomes of an object; all but the first are losses.
OUTCOMES = (
    "assigned to a cell",
    "vanishes when the image is resized",
    "in no scale range",
    "all its cells belong to others",
    "empty at the size of the masks",
    "lies outside the image",
)
ASSIGNED, VANISHED, NO_RANGE, NO_CELL, NO_MASK, OUTSIDE = range(len(OUTCOMES))
# Outcome of an annotation that a random crop removes: neither kept nor lost.
_CUT_OFF = -1
# Problem of an unreadable image file, which training replaces up to a limit.
UNREADABLE_FILE = "image file cannot be read"
# Minimum IoU of box and mask, for objects of at least this scale in pixels.
_LEAST_IOU, _LEAST_SCALE = 0.5, 16

# (N,) records of `object_type`.
Objects = NDArray[np.void]


def object_type(num_levels: int = 1) -> np.dtype[np.void]:
    """Return the dtype of an object at its training size; missing values are 0."""
    return np.dtype(
        [
            ("image", np.int64),  # its index
            ("name", object),  # of the annotation
            ("outcome", np.int64),  # place in OUTCOMES
            ("input", np.float32, (2,)),  # height and width of the network's input
            ("box", np.float32, (4,)),  # XYXY in its pixels
            ("label", np.int64),
            ("center", np.float32, (2,)),  # x and y of the mass centre
            ("area", np.int64),  # pixels of the mask; 0 of an object that is not in the image
            ("visible", bool, (num_levels,)),  # whether a level's downsampled mask has a pixel
        ]
    )


def box_scales(boxes: Tensor) -> Tensor:
    """Return (N,) float32 sqrt(w * h) of boxes (N, 4), XYXY."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()


class TargetRule:
    """The target assignment of a config's model; the model itself is not kept."""

    def __init__(self, cfg: CfgNode):
        """Read the settings from the config's model, built on the meta device."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
        self.divisibility = model.backbone.size_divisibility
        self.constraints = model.backbone.padding_constraints
        self.mask_strides = tuple(model.head.mask_strides)
        self.mask_target = model.mask_target
        self.params: dict[str, Any] = {
            "num_grids": tuple(model.head.num_grids),
            "scale_ranges": [tuple(pair) for pair in model.scale_ranges],
            "num_classes": model.num_classes,
            "center_scale": model.center_scale,
            "cell_conflict": model.cell_conflict,
        }

    def with_levels(
        self, num_grids: Sequence[int], scale_ranges: Sequence[Sequence[float]]
    ) -> "TargetRule":
        """Return a copy with other grids and scale ranges."""
        other = copy.copy(self)
        levels = {"num_grids": tuple(num_grids), "scale_ranges": [tuple(r) for r in scale_ranges]}
        other.params = {**self.params, **levels}
        return other

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the network's input for a single image."""
        image = torch.empty(1, height, width, device="meta")
        padded = ImageList.from_tensors(
            [image], self.divisibility, padding_constraints=self.constraints
        )
        return padded.tensor.shape[-2], padded.tensor.shape[-1]

    def objects(self, instances: Instances) -> Objects:
        """Return the N instances of an image with their outcomes, without names."""
        found = np.zeros(len(instances), object_type(len(self.mask_strides)))
        if len(instances) == 0:
            return found
        size = self.padded_size(*instances.image_size)
        boxes, labels = instances.gt_boxes.tensor, instances.gt_classes
        masks = instances.gt_masks.tensor
        targets = assign_grid_targets(
            *([boxes], [labels], [masks]),
            padded_size=size,
            mask_strides=self.mask_strides,
            mask_target=self.mask_target,
            **self.params,
        )
        centers, areas = mask_centers(masks)
        found["input"], found["box"], found["label"] = size, boxes.numpy(), labels.numpy()
        found["center"], found["area"] = centers.numpy(), areas.numpy()
        for level, stride in enumerate(self.mask_strides):
            found["visible"][:, level] = targets.masks[stride].flatten(1).any(dim=1).numpy()
        found["outcome"] = self.outcomes(found)
        return found

    def outcomes(self, objects: Objects) -> NDArray[np.int64]:
        """Return (N,) indices into `OUTCOMES` of the objects of an image."""
        boxes, labels, centers, areas, visible = (
            torch.from_numpy(objects[field].copy())
            for field in ("box", "label", "center", "area", "visible")
        )
        height, width = objects["input"][0].astype(int).tolist()
        targets = assign_cells(
            [boxes], [labels], centers, areas, padded_size=(height, width), **self.params
        )
        num_cells = targets.classes.shape[1]
        # The last of several instances in a cell gives the class.
        owner = torch.full((num_cells,), -1).scatter_reduce(
            0, targets.cells, targets.instances, "amax"
        )
        owns, has_mask = torch.zeros(2, len(objects), dtype=torch.bool)
        owns[owner[owner >= 0]] = True
        samples = targets.instances.split(targets.num_samples[0])
        for level, instances in enumerate(samples):
            has_mask[instances] |= visible[instances, level]
        scale = box_scales(boxes)[:, None]
        ranges = torch.tensor(self.params["scale_ranges"], dtype=torch.float32)
        in_range = ((scale >= ranges[:, 0]) & (scale <= ranges[:, 1])).any(dim=1)
        outcomes = torch.full((len(objects),), ASSIGNED)
        for lost, number in ((~has_mask, NO_MASK), (~owns, NO_CELL), (~in_range, NO_RANGE)):
            outcomes[lost] = number
        return outcomes.numpy()


class NamingMapper(SOLODatasetMapper):
    """The training mapper; its instances also have the annotation ids, as `gt_names`.

    Attributes:
        outside: annotation ids of the last image that lie outside of it.
        cut_off: those that its crop removed.
    """

    outside: Sequence[int] = ()
    cut_off: Sequence[int] = ()

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map an image; see the class."""
        self.outside = self.cut_off = ()
        return super().__call__(dataset_dict)

    def _make_instances(
        self,
        annotations: list[dict[str, Any]],
        transforms: TransformList,
        image_shape: tuple[int, int],
        original_shape: tuple[int, int],
    ) -> Instances:
        boxes = np.array([segmentation_box(x["segmentation"]) for x in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        names = np.array([annotation["id"] for annotation in annotations], np.int64)
        there = _touch(boxes, original_shape)
        left = _touch(transforms.apply_box(boxes), image_shape)
        self.outside, self.cut_off = names[~there].tolist(), names[there & ~left].tolist()
        instances = super()._make_instances(annotations, transforms, image_shape, original_shape)
        instances.gt_names = torch.from_numpy(names)
        return instances


def _touch(boxes: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (N,) whether boxes (N, 4), XYXY, intersect an image of a height and width."""
    return np.all((boxes[:, :2] < shape[::-1]) & (boxes[:, 2:] > 0), axis=1)


@dataclass(frozen=True)
class Inspection:
    """Findings of an image; objects is None if not inspected or unreadable."""

    index: int
    problems: list[Problem]
    objects: Objects | None = None


class Inspector:
    """Inspects images one at a time."""

    def __init__(self, cfg: CfgNode, rule: TargetRule, num_classes: int):
        """Create the training mapper."""
        cfg = without_randomness(cfg)
        cfg.INPUT.MASK_FORMAT = "bitmask"
        self.mapper = NamingMapper(cfg, is_train=True)
        self.rule = rule
        self.num_classes = num_classes

    def inspect(self, index: int, record: dict[str, Any], with_objects: bool) -> Inspection:
        """Open an image and, if requested, assign its objects to cells."""
        try:
            if not with_objects:
                read_record({**record}, self.mapper.image_format, self.mapper.max_pixels)
                return Inspection(index, [])
            sample, objects, problems = self.follow(record)
        except UnreadableImageError as error:
            reason = f"{error.file}: {error.reason}"
            return Inspection(index, [_image_problem(record, UNREADABLE_FILE, reason, SKIPPED)])
        except DatasetError as error:
            return Inspection(index, [_image_problem(record, "image cannot be used", str(error))])
        objects["image"] = index
        problems += _box_problems(sample["instances"], objects)
        return Inspection(index, problems, objects[objects["outcome"] != _CUT_OFF])

    def follow(self, record: dict[str, Any]) -> tuple[dict[str, Any], Objects, list[Problem]]:
        """Map an image and assign its objects to cells; DatasetError if it cannot be used.

        Returns:
            The training sample, whose `gt_names` index the second; the objects used in training,
            including those that its crop removes; the problems of the others.
        """
        problems: list[Problem] = []
        names: list[str] = []
        annotations = []
        for index, annotation in enumerate(record.get("annotations", [])):
            name = f"annotation {annotation.get('id', f'number {index} of the image')}"
            problem = self._problem(annotation, record, index, name)
            if problem is not None:
                problems.append(problem)
            elif annotation.get("iscrowd", 0) == 0:
                annotations.append({**annotation, "id": len(names)})
                names.append(name)
        state = np.random.get_state()
        np.random.seed(zlib.crc32(str(record["file_name"]).encode(errors="replace")))  # crops
        try:
            sample = self.mapper({**record, "annotations": annotations})
        finally:
            np.random.set_state(state)
        found = self.rule.objects(sample["instances"])
        objects = np.zeros(len(names), found.dtype)
        objects["outcome"] = VANISHED
        objects["outcome"][list(self.mapper.outside)] = OUTSIDE
        objects["outcome"][list(self.mapper.cut_off)] = _CUT_OFF
        objects[sample["instances"].gt_names.numpy()] = found
        objects["name"] = names
        return sample, objects, problems

    def _problem(
        self, annotation: dict[str, Any], record: dict[str, Any], index: int, name: str
    ) -> Problem | None:
        """Return the problem of an annotation of a loaded data set, or None."""
        category = annotation.get("category_id")
        if not isinstance(category, int) or not 0 <= category < self.num_classes:
            reason = f"category_id is {category!r}, but there are {self.num_classes} classes"
            where = f"{name} of {record['file_name']}"
            return Problem("class outside the data set's", where, reason)
        if "height" not in record or "width" not in record:
            return None  # the mapper reads them from the file
        try:
            clean_annotation(annotation, record, index)
        except DatasetError as error:
            return Problem("annotation cannot be used", name, str(error))
        return None


def _image_problem(record: dict[str, Any], kind: str, reason: str, *severity: str) -> Problem:
    return Problem(kind, f"image {record.get('image_id')!r}", reason, *severity)


def _box_problems(instances: Instances, objects: Objects) -> list[Problem]:
    """Find boxes that do not match their masks: an object's scale is that of its box."""
    boxes, tight = instances.gt_boxes.tensor, mask_boxes(instances.gt_masks.tensor)
    low, high = torch.maximum(boxes[:, :2], tight[:, :2]), torch.minimum(boxes[:, 2:], tight[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    areas = [box_scales(each).square() for each in (boxes, tight)]
    overlap = common / (areas[0] + areas[1] - common)
    odd = (overlap < _LEAST_IOU) & (torch.maximum(*areas) >= _LEAST_SCALE**2)
    reason = "the IoU of bbox and mask box is {:.0%}; a bbox is [x, y, width, height]"
    names = objects["name"][instances.gt_names[odd].numpy()]
    return [
        Problem("box does not fit its mask", name, reason.format(share), NOTICE)
        for name, share in zip(names, overlap[odd].tolist(), strict=True)
    ]
