"""Opens images as training does, and follows each object to the cells that it is assigned to.

What is random in training is left out, but for crops: the image has its usual size, and is alone in
its batch.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from solo_d2.structures import GridTargets
from solo_d2.targets import assign_cells, assign_grid_targets
from solo_d2.utils.errors import DatasetError, UnreadableImageError

# What becomes of an object, by its number in `Objects.outcomes`; all but the first are losses.
OUTCOMES = (
    "assigned to a cell",
    "vanishes when the image is resized",
    "in no scale range",
    "all its cells belong to others",
    "empty at the size of the masks",
    "lies outside the image",
)
ASSIGNED, VANISHED, NO_RANGE, NO_CELL, NO_MASK, OUTSIDE = range(len(OUTCOMES))
# Parameters of `assign_cells`.
_CELL_PARAMS = ("num_grids", "scale_ranges", "num_classes", "center_scale", "cell_conflict")
# The kind of problem of an image file that cannot be read; training takes another, up to a limit.
UNREADABLE_FILE = "image file cannot be read"
# A box and a mask that overlap less than this, of an object of at least this scale in pixels, do
# not mean the same.
_LEAST_IOU, _LEAST_SCALE = 0.5, 16


@dataclass(frozen=True)
class Objects:
    """Objects of some images at their size in training.

    Attributes:
        images: (N,) int64 index of the image.
        scales: (N,) float32 sqrt(w * h) of the box in pixels; NaN for what vanished.
        centers: (N, 2) float32 x and y of the mass centre, in units of the padded input; NaN for
            what vanished.
        outcomes: (N,) int64 place in OUTCOMES.
        names: (N,) of the annotations.
    """

    images: NDArray[np.int64]
    scales: NDArray[np.float32]
    centers: NDArray[np.float32]
    outcomes: NDArray[np.int64]
    names: list[str]

    @classmethod
    def join(cls, parts: Sequence["Objects"]) -> "Objects":
        """All objects of several; none for none."""
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(part.images for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.scales for part in parts)]),
            np.concatenate([np.zeros((0, 2), np.float32), *(part.centers for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.outcomes for part in parts)]),
            [name for part in parts for name in part.names],
        )


@dataclass(frozen=True)
class Layout:
    """What decides which cells the N objects of an image get, without their masks.

    Attributes:
        padded_size: height and width of the network's input.
        boxes: (N, 4) float32, XYXY in its pixels.
        classes: (N,) int64.
        centers: (N, 2) float32, mass centres of the masks.
        areas: (N,) int64, their pixels.
        visible: by mask stride, (N,) bool, whether a mask has a pixel once it is downsampled by it.
    """

    padded_size: tuple[int, int]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    centers: NDArray[np.float32]
    areas: NDArray[np.int64]
    visible: dict[int, NDArray[np.bool_]]

    @classmethod
    def join(cls, parts: Sequence["Layout"]) -> "Layout":
        """The objects of at least one part of an image's annotations."""
        return cls(
            padded_size=parts[0].padded_size,
            boxes=np.concatenate([part.boxes for part in parts]),
            classes=np.concatenate([part.classes for part in parts]),
            centers=np.concatenate([part.centers for part in parts]),
            areas=np.concatenate([part.areas for part in parts]),
            visible={
                stride: np.concatenate([part.visible[stride] for part in parts])
                for stride in parts[0].visible
            },
        )


@dataclass(frozen=True)
class Inspection:
    """What was found in an image.

    Attributes:
        index: of the image.
        problems: with the file and its annotations.
        objects: None where they were not looked at, or the file cannot be read.
        layout: of those objects that are in the training image; None where there is none.
    """

    index: int
    problems: list[Problem] = field(default_factory=list)
    objects: Objects | None = None
    layout: Layout | None = None


class TargetRule:
    """How a config's model assigns objects to cells; the model itself is not kept."""

    def __init__(self, cfg: CfgNode, model: Any = None):
        """Take what assignment needs of a model.

        Args:
            cfg: with a number of classes.
            model: of the config. None: it is built without memory for its weights, which also
                checks the config.

        Raises:
            ConfigError: the model cannot be built.
        """
        if model is None:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = "meta"
            model = build_model(cfg)
        self.divisibility = model.backbone.size_divisibility
        self.constraints = model.backbone.padding_constraints
        self.params = {
            "num_grids": tuple(model.head.num_grids),
            "scale_ranges": [tuple(pair) for pair in model.scale_ranges],
            "mask_strides": tuple(model.head.mask_strides),
            "num_classes": model.num_classes,
            "center_scale": model.center_scale,
            "cell_conflict": model.cell_conflict,
            "mask_target": model.mask_target,
        }

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the network's input for an image that is alone in its batch."""
        image = torch.empty(1, height, width, device="meta")
        padded = ImageList.from_tensors(
            [image], self.divisibility, padding_constraints=self.constraints
        )
        return padded.tensor.shape[-2], padded.tensor.shape[-1]

    def assign(self, instances: Instances) -> GridTargets:
        """The targets of one image."""
        return assign_grid_targets(
            [instances.gt_boxes.tensor],
            [instances.gt_classes],
            [instances.gt_masks.tensor],
            padded_size=self.padded_size(*instances.image_size),
            **self.params,
        )

    def layout(self, instances: Instances) -> Layout:
        """What decides which cells an image's instances get."""
        targets = self.assign(instances)
        centers, areas = mask_centers(instances.gt_masks.tensor)
        return Layout(
            padded_size=self.padded_size(*instances.image_size),
            boxes=instances.gt_boxes.tensor.numpy(),
            classes=instances.gt_classes.numpy(),
            centers=centers.numpy(),
            areas=areas.numpy(),
            visible={
                stride: masks.flatten(1).any(dim=1).numpy()
                for stride, masks in targets.masks.items()
            },
        )

    def with_levels(
        self, num_grids: Sequence[int], scale_ranges: Sequence[Sequence[float]]
    ) -> "TargetRule":
        """The same with other grids and scale ranges."""
        other = copy.copy(self)
        levels = {"num_grids": tuple(num_grids), "scale_ranges": [tuple(r) for r in scale_ranges]}
        other.params = {**self.params, **levels}
        return other

    def outcomes(self, layout: Layout) -> Tensor:
        """What becomes of each of N instances of an image: (N,) int64, see `OUTCOMES`."""
        params = {key: self.params[key] for key in _CELL_PARAMS}
        boxes = torch.from_numpy(layout.boxes)
        targets = assign_cells(
            [boxes],
            [torch.from_numpy(layout.classes)],
            torch.from_numpy(layout.centers),
            torch.from_numpy(layout.areas),
            padded_size=layout.padded_size,
            **params,
        )
        count, num_cells = len(layout.classes), targets.classes.shape[1]
        # Of several instances in a cell the last gives the class; with other rules there is one.
        owner = torch.full((num_cells,), -1).scatter_reduce(
            0, targets.cells, targets.instances, "amax"
        )
        owns, has_mask = torch.zeros(2, count, dtype=torch.bool)
        owns[owner[owner >= 0]] = True
        samples = targets.instances.split(targets.num_samples[0])
        for stride, level in zip(self.params["mask_strides"], samples, strict=True):
            has_mask[level] |= torch.from_numpy(layout.visible[stride])[level]
        scale = box_scales(boxes)[:, None]
        ranges = torch.tensor(self.params["scale_ranges"], dtype=torch.float32)
        in_range = ((scale >= ranges[:, 0]) & (scale <= ranges[:, 1])).any(dim=1)
        outcomes = torch.full((count,), ASSIGNED)
        for lost, number in ((~has_mask, NO_MASK), (~owns, NO_CELL), (~in_range, NO_RANGE)):
            outcomes[lost] = number
        return outcomes


def box_scales(boxes: Tensor) -> Tensor:
    """(N,) float32 sqrt(w * h) of boxes (N, 4), XYXY."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()


class NamingMapper(SOLODatasetMapper):
    """The training mapper; its instances also have their annotation's id, as `gt_names`.

    Attributes:
        outside: ids of the last image's annotations that lie outside of it.
        cut_off: ids of those that its crop has left out.
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
        boxes = np.array([segmentation_box(each["segmentation"]) for each in annotations])
        boxes[:, 2:] += boxes[:, :2]
        names = np.array([annotation["id"] for annotation in annotations])
        there = _touch(boxes, original_shape)
        left = _touch(transforms.apply_box(boxes), image_shape)
        self.outside, self.cut_off = names[~there].tolist(), names[there & ~left].tolist()
        instances = super()._make_instances(annotations, transforms, image_shape, original_shape)
        instances.gt_names = torch.from_numpy(names)
        return instances

    def _no_instances(self, image_shape: tuple[int, int]) -> Instances:
        instances = super()._no_instances(image_shape)
        instances.gt_names = torch.zeros(0, dtype=torch.int64)
        return instances


def _touch(boxes: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(N,) whether boxes (N, 4), XYXY, have a part in an image of a height and width."""
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = (low < shape[::-1]) & (high > 0)
    return inside[:, 0] & inside[:, 1]


class Inspector:
    """Looks at one image after the other."""

    def __init__(self, cfg: CfgNode, rule: TargetRule, num_classes: int):
        """Make the mapper.

        Args:
            cfg: of the training.
            rule: how objects find their cells.
            num_classes: K.
        """
        cfg = without_randomness(cfg)
        cfg.INPUT.MASK_FORMAT = "bitmask"
        self.mapper = NamingMapper(cfg, is_train=True)
        self.rule = rule
        self.num_classes = num_classes

    def sample(self, record: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[Problem]]:
        """Map an image.

        Returns:
            The training sample, whose `gt_names` are indices of the second, the names of the
            annotations that training takes; and what is wrong with the others.

        Raises:
            DatasetError: the image cannot be used.
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
        return sample, names, problems

    def _problem(
        self, annotation: dict[str, Any], record: dict[str, Any], index: int, name: str
    ) -> Problem | None:
        """What is wrong with an annotation of a loaded data set."""
        category = annotation.get("category_id")
        if not isinstance(category, int) or not 0 <= category < self.num_classes:
            reason = f"category_id is {category!r}, but there are {self.num_classes} classes"
            where = f"{name} of {record['file_name']}"
            return Problem("class outside the data set's", where, reason)
        if "height" not in record or "width" not in record:
            return None  # the mapper finds them in the file
        try:
            clean_annotation(annotation, record, index)
        except DatasetError as error:
            return Problem("annotation cannot be used", name, str(error))
        return None

    def inspect(self, index: int, record: dict[str, Any], with_objects: bool) -> Inspection:
        """Open an image and, if wanted, follow its objects to their cells.

        Args:
            index: of the image, for the objects.
            record: a dataset dict.
            with_objects: else the file alone is read.
        """
        if not with_objects:
            return Inspection(index, self._read_problem(record))
        try:
            sample, names, problems = self.sample(record)
        except DatasetError as error:
            return Inspection(index, [_image_problem(record, error)])
        instances = sample["instances"]
        problems += _box_problems(instances, names)
        layout = self.rule.layout(instances) if len(instances) else None
        objects = self._objects(index, instances, layout, names)
        return Inspection(index, problems, objects, layout)

    def _read_problem(self, record: dict[str, Any]) -> list[Problem]:
        try:
            read_record({**record}, self.mapper.image_format, self.mapper.max_pixels)
        except DatasetError as error:
            return [_image_problem(record, error)]
        return []

    def outcomes(
        self, instances: Instances, layout: Layout | None, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What becomes of the annotations of the image that was mapped last.

        Returns:
            (N,) the outcomes, and (N,) whether a crop has left the annotation in.
        """
        outcomes, inside = np.full(count, VANISHED), np.ones(count, bool)
        outcomes[list(self.mapper.outside)] = OUTSIDE
        inside[list(self.mapper.cut_off)] = False
        if layout is not None:
            outcomes[instances.gt_names.numpy()] = self.rule.outcomes(layout).numpy()
        return outcomes, inside

    def _objects(
        self, index: int, instances: Instances, layout: Layout | None, names: list[str]
    ) -> Objects:
        count = len(names)
        found = instances.gt_names.numpy()
        scales = np.full(count, np.nan, np.float32)
        centers = np.full((count, 2), np.nan, np.float32)
        if layout is not None:
            height, width = layout.padded_size
            scales[found] = box_scales(torch.from_numpy(layout.boxes)).numpy()
            centers[found] = layout.centers / np.array([width, height], np.float32)
        outcomes, inside = self.outcomes(instances, layout, count)
        kept = [name for name, there in zip(names, inside, strict=True) if there]
        images = np.full(len(kept), index)
        return Objects(images, scales[inside], centers[inside], outcomes[inside], kept)


def _image_problem(record: dict[str, Any], error: DatasetError) -> Problem:
    where = f"image {record.get('image_id')!r}"
    if isinstance(error, UnreadableImageError):
        reason = f"{error.file}: {error.reason}"
        return Problem(UNREADABLE_FILE, where, reason, SKIPPED)
    return Problem("image cannot be used", where, str(error))


def _box_problems(instances: Instances, names: list[str]) -> list[Problem]:
    """Boxes that do not fit their masks: the scale of an object is that of its box."""
    boxes, tight = instances.gt_boxes.tensor, mask_boxes(instances.gt_masks.tensor)
    low, high = torch.maximum(boxes[:, :2], tight[:, :2]), torch.minimum(boxes[:, 2:], tight[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    areas = [box_scales(each).square() for each in (boxes, tight)]
    union = areas[0] + areas[1] - common
    odd = (common < _LEAST_IOU * union) & (torch.maximum(*areas) >= _LEAST_SCALE**2)
    reason = "the bbox and the box of the mask overlap by {:.0%}; a bbox is [x, y, width, height]"
    return [
        Problem("box does not fit its mask", names[name], reason.format(overlap), NOTICE)
        for name, overlap in zip(
            instances.gt_names[odd].tolist(), (common / union)[odd].tolist(), strict=True
        )
    ]


def describe_outcomes(parts: Sequence[Objects]) -> str:
    """Say what becomes of objects of which none is assigned to a cell, and what to change."""
    objects = Objects.join(parts)
    total = len(objects.outcomes)
    counts = ", ".join(
        f"{(objects.outcomes == outcome).sum()} x {name}"
        for outcome, name in enumerate(OUTCOMES)
        if (objects.outcomes == outcome).any()
    )
    return (
        f"none of {total} objects reaches a cell at its size in training ({counts}). Change "
        "INPUT.MIN_SIZE_TRAIN, MODEL.SOLO.SCALE_RANGES or NUM_GRIDS; tools/check_dataset.py "
        "proposes values"
    )
