"""A dataset mapper for all kinds of masks and images without objects, with clear errors."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.data.transforms import AugInput, AugmentationList, TransformList
from detectron2.structures import BoxMode, Instances, PolygonMasks
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.config.models import is_panoptic
from solo_d2.data.augmentation import build_train_augmentation, keep_a_pixel
from solo_d2.data.cropped_masks import CroppedMasks
from solo_d2.data.ignored import is_object
from solo_d2.data.label_pngs import opened_labels, require_size
from solo_d2.data.mask_transforms import transform_masks
from solo_d2.data.other_models import without_other_inputs
from solo_d2.data.segmentations import clean_segmentation, is_box, segmentation_box
from solo_d2.ops.mask_crops import Window
from solo_d2.utils.errors import ConfigError, DatasetError, UnreadableImageError
from solo_d2.utils.images import MAX_PIXELS, ImageError, TooManyPixelsError, read_image
from solo_d2.utils.user_code import from_user_code, note_part

# Other formats of Detectron2 have another number of channels, or floats.
INPUT_FORMATS = ("BGR", "RGB")
# Raised by Detectron2, NumPy and torch for invalid values of annotations.
_ANNOTATION_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError),
    *(AssertionError, OverflowError, RuntimeError),
)


class SOLODatasetMapper(DatasetMapper):
    """Map a dataset dict to the model's input.

    Like Detectron2's mapper, with these differences in training:

    - Polygons, RLE and (H, W) masks may be mixed in one image.
    - `instances` is always present, with `gt_boxes` (N, 4), `gt_classes` (N,) and `gt_masks`
      (N, H, W), cropped until they are read (`CroppedMasks`). N = 0 for an image without
      annotations or with crowds only.
    - Annotations that cover nothing are skipped.
    - `sem_seg` has the (H, W) int64 stuff labels if the constructor enables them.
    - Unusable annotations and images raise DatasetError, unreadable image files
      UnreadableImageError. The messages name the file, also if raised in a worker.

    Images are read by `solo_d2.utils.images.read_image`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        num_sem_seg_classes: int = 0,
        sem_seg_ignore_value: int = 255,
        max_pixels: int = MAX_PIXELS,
        **arguments: Any,
    ):
        """Set up the mapper.

        Args:
            is_train: whether the samples are for training.
            num_sem_seg_classes: number of labels of the stuff maps; 0 not to read them.
            sem_seg_ignore_value: label of pixels without a class in stuff maps.
            max_pixels: maximum number of pixels of an image.
            **arguments: arguments of Detectron2's mapper.

        Raises:
            ConfigError: the image format is not in `INPUT_FORMATS`.
        """
        super().__init__(is_train, **arguments)
        if self.image_format not in INPUT_FORMATS:
            raise ConfigError(
                f"INPUT.FORMAT is {self.image_format!r}, but must be one of {INPUT_FORMATS}"
            )
        self.augmentations: Any = AugmentationList(keep_a_pixel(self.augmentations.augs))
        self.num_sem_seg_classes = num_sem_seg_classes if is_train else 0
        self.sem_seg_ignore_value = sem_seg_ignore_value
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor.

        Masks are used regardless of MODEL.MASK_ON, stuff maps only for panoptic models.
        """
        cfg = without_other_inputs(cfg)
        arguments = super().from_config(cfg, is_train)
        arguments["use_instance_mask"] = True
        arguments["max_pixels"] = cfg.INPUT.MAX_PIXELS
        if is_train:
            arguments["augmentations"] = build_train_augmentation(cfg)
        crops = cfg.INPUT.CROP.ENABLED or cfg.INPUT.LSJ.ENABLED
        arguments["recompute_boxes"] = is_train and crops
        if is_panoptic(cfg):
            arguments["num_sem_seg_classes"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            arguments["sem_seg_ignore_value"] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read, augment and convert one image.

        Args:
            dataset_dict: dict in Detectron2's format; not modified.

        Raises:
            UnreadableImageError: the image file cannot be read.
            DatasetError: its size differs from the dataset dict, or the stuff map or an annotation
                cannot be used.
        """
        sample = {**dataset_dict}
        stuff_file = sample.pop("sem_seg_file_name", None)
        annotations = sample.pop("annotations", [])
        pixels = read_record(sample, self.image_format, self.max_pixels)
        stuff = None
        if self.num_sem_seg_classes:
            with opened_stuff(dataset_dict) as image:
                stuff = np.array(image)
        inputs = AugInput(pixels, sem_seg=stuff)
        transforms = self.augmentations(inputs)
        # `np.ascontiguousarray` would keep the negative stride of a flipped image of width 1.
        pixels = np.array(inputs.image.transpose(2, 0, 1), order="C")
        sample["image"] = torch.from_numpy(pixels)
        if inputs.sem_seg is not None:
            sample["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
            self._check_labels(sample["sem_seg"], stuff_file)
        if self.is_train:
            sample["instances"] = self._instances(sample, annotations, transforms, pixels.shape[1:])
        return sample

    def _check_labels(self, sem_seg: torch.Tensor, file: Any) -> None:
        wrong = (sem_seg >= self.num_sem_seg_classes) & (sem_seg != self.sem_seg_ignore_value)
        if wrong.any():
            raise DatasetError(
                f"{file} has the label {int(sem_seg[wrong].max())}, but there are "
                f"{self.num_sem_seg_classes} classes (0 to {self.num_sem_seg_classes - 1}, "
                f"{self.sem_seg_ignore_value} for none). Write the stuff maps again "
                "(tools/convert_panoptic.py), or correct the data set's stuff_classes"
            )

    def _instances(
        self,
        record: dict[str, Any],
        annotations: list[dict[str, Any]],
        transforms: TransformList,
        image_shape: tuple[int, int],
    ) -> Instances:
        """Return the instances of a transformed image; the annotations are not modified."""
        objects = []
        for index, annotation in enumerate(annotations):
            cleaned = clean_annotation(annotation, record, index) if is_object(annotation) else None
            if cleaned is not None:
                objects.append(cleaned)
        try:
            original_shape = record["height"], record["width"]
            made = self._make_instances(objects, transforms, image_shape, original_shape)
            return _without_empty(made)
        except _ANNOTATION_ERRORS as error:
            text = f"{record['file_name']}: the annotations cannot be used"
            if from_user_code(error):  # for example of a transform
                note_part(error, text)
                raise
            raise DatasetError(f"{text}: {type(error).__name__}: {error}") from error

    def _make_instances(
        self,
        objects: list[dict[str, Any]],
        transforms: TransformList,
        image_shape: tuple[int, int],
        original_shape: tuple[int, int],
    ) -> Instances:
        segmentations = [item.pop("segmentation") for item in objects]
        for item in objects:
            keypoints = item.pop("keypoints", None)
            if self.use_keypoint and keypoints is not None:  # transforms modify arrays in place
                item["keypoints"] = copy.deepcopy(keypoints)
            transform_instance_annotations(
                item, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
            )
        instances = annotations_to_instances(objects, image_shape)
        if self.instance_mask_format == "polygon":
            instances.gt_masks = _polygon_masks(segmentations, transforms)
        else:
            masks = transform_masks(segmentations, transforms, image_shape, original_shape)
            if self.recompute_boxes:  # polygons may extend into the padding
                masks = masks.clip(_content_window(transforms, image_shape, original_shape))
            instances.gt_masks = masks
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return instances


def read_record(
    record: dict[str, Any], image_format: str, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read the image of a dataset dict, and set missing height and width in the dict.

    Args:
        record: dict with `file_name`.
        image_format: one of `INPUT_FORMATS`.
        max_pixels: maximum number of pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImageError: the file cannot be read.
        DatasetError: the size of the image differs from the dict.
    """
    file = record["file_name"]
    try:
        pixels = read_image(PathManager.get_local_path(file), max_pixels=max_pixels)
    except (ImageError, OSError) as error:
        reason = str(error).removeprefix(f"{Path(file)}: ")
        message = f"{file} cannot be read: {reason}. Replace it, or take it out of the data set"
        if isinstance(error, TooManyPixelsError):
            message += ", or allow more by INPUT.MAX_PIXELS"
        raise UnreadableImageError(message, file, reason) from error
    try:
        detection_utils.check_image_size(record, pixels)
    except detection_utils.SizeMismatchError as error:
        height, width = pixels.shape[:2]
        raise DatasetError(
            f"{file} has {height} x {width} pixels (height x width), the data set says "
            f"{record['height']} x {record['width']}. Correct its entry, or replace the file (its "
            "EXIF orientation is applied, which may swap both)"
        ) from error
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def _without_empty(instances: Instances) -> Instances:
    """Filter like Detectron2's `filter_empty_instances`, without a copy if nothing is empty."""
    if not isinstance(instances.gt_masks, CroppedMasks):
        return filter_empty_instances(instances)
    kept = instances.gt_boxes.nonempty(threshold=1e-5) & instances.gt_masks.nonempty()
    return instances if kept.all() else instances[kept]


def _polygon_masks(segmentations: list[Any], transforms: TransformList) -> PolygonMasks:
    if not all(isinstance(segmentation, list) for segmentation in segmentations):
        raise ValueError("INPUT.MASK_FORMAT 'polygon' takes polygons only, not RLE")
    masks = []
    for polygons in segmentations:
        # Copies, since transforms modify arrays in place.
        parts = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
        masks.append([part.reshape(-1) for part in transforms.apply_polygons(parts)])
    return PolygonMasks(masks)


def _content_window(
    transforms: TransformList, image_shape: tuple[int, int], original_shape: tuple[int, int]
) -> Window:
    """Return the part of the transformed image without padding, for axis-aligned transforms."""
    height, width = original_shape
    corners = transforms.apply_box(np.array([[0.0, 0.0, width, height]]))[0]
    largest = [image_shape[1], image_shape[0]] * 2
    left, top, right, bottom = np.rint(corners).astype(int).clip(0, largest).tolist()
    return left, top, right, bottom


@contextlib.contextmanager
def opened_stuff(record: dict[str, Any]) -> Iterator[Image.Image]:
    """Open the stuff map of a dataset dict; DatasetError if it is unusable or of another size."""
    image_file, file = record["file_name"], record.get("sem_seg_file_name")
    if file is None:
        raise DatasetError(
            f"{image_file} has no stuff map (sem_seg_file_name), which a panoptic model trains on"
        )
    title = f"{file}, the stuff map of {image_file},"
    with opened_labels(file, ("L",), title) as stuff:
        height, width = stuff.height, stuff.width
        require_size(title, (height, width), {"height": height, "width": width, **record})
        yield stuff


def clean_annotation(
    annotation: dict[str, Any], dataset_dict: dict[str, Any], index: int
) -> dict[str, Any] | None:
    """Convert an annotation to a form that Detectron2 transforms; None if it covers nothing.

    Args:
        annotation: annotation of a dataset dict; not modified.
        dataset_dict: dict of the image, with height and width.
        index: index of the annotation in the image, for messages if it has no id.

    Raises:
        DatasetError: the annotation is invalid; the message names it and the file.
    """
    height, width = dataset_dict["height"], dataset_dict["width"]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        segmentation = coco_mask.encode(np.asfortranarray(segmentation != 0, np.uint8))
    try:
        segmentation = clean_segmentation(segmentation, height, width)
    except ValueError as error:
        name = annotation.get("id", f"number {index} of the image")
        raise DatasetError(f"{dataset_dict['file_name']}: annotation {name}: {error}") from error
    if segmentation is None:
        return None
    annotation = {**annotation, "segmentation": segmentation}
    relative = annotation.setdefault("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYWH_ABS
    if "bbox" not in annotation or (relative and not is_box(annotation["bbox"])):
        annotation["bbox"] = segmentation_box(segmentation)
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
    return annotation
