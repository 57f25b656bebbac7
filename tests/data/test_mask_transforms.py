"""Transformed masks are those of Detectron2: decode, transform, stack."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.transforms import TransformList
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from solo_d2.data.mask_transforms import source_lines, transform_masks
from solo_d2.data.segmentations import clean_segmentation
from tests.json_damage import rle_of

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = 37, 53


def shapes(height: int = HEIGHT, width: int = WIDTH) -> dict[str, NDArray[np.bool_]]:
    """Masks of every kind."""
    rng = np.random.default_rng(0)
    names = ("box", "corners", "last pixel", "first pixel", "far parts", "row", "column")
    masks = {name: np.zeros((height, width), bool) for name in names}
    masks["box"][5:20, 7:30] = True
    masks["corners"][[0, 0, -1, -1], [0, -1, 0, -1]] = True
    masks["last pixel"][-1, -1] = True
    masks["first pixel"][0, 0] = True
    masks["far parts"][:3, :3] = masks["far parts"][-3:, -2:] = True
    masks["row"][11] = True
    masks["column"][:, 13] = True
    masks["whole image"] = np.ones((height, width), bool)
    masks["noise"] = rng.random((height, width)) < 0.5
    masks["sparse noise"] = rng.random((height, width)) < 0.02
    masks["right half"] = np.arange(width)[None].repeat(height, 0) > width // 2
    masks["lower half"] = np.arange(height)[:, None].repeat(width, 1) > height // 2
    return masks


def resize(height: int, width: int, before: tuple[int, int] = (HEIGHT, WIDTH)) -> T.Transform:
    return T.ResizeTransform(*before, height, width)


FLIP = T.HFlipTransform(WIDTH)


def rles(*masks: NDArray[np.bool_]) -> list[dict]:
    return [rle_of(mask) for mask in masks]


TRANSFORMS = {
    "nothing": [],
    "colours": [T.NoOpTransform(), T.BlendTransform(np.zeros(3), 0.5, 0.5)],
    "down": [resize(11, 16)],
    "up": [resize(90, 201)],
    "down and up": [resize(9, 160)],
    "to a pixel": [resize(1, 1)],
    "flip": [FLIP],
    "flips, up": [FLIP, T.VFlipTransform(HEIGHT), resize(50, 70)],
    "down, flip": [resize(20, 30), T.HFlipTransform(30), T.VFlipTransform(20)],
    "crop": [T.CropTransform(9, 4, 30, 20)],
    "crop, up": [T.CropTransform(9, 4, 30, 20), resize(61, 45, before=(20, 30))],
    "jitter": [
        resize(20, 30),
        FLIP,
        TransformList([T.CropTransform(0, 3, 30, 17)]),
        TransformList([T.PadTransform(0, 0, 10, 23, seg_pad_value=0)]),
    ],  # fmt: skip
    "pad, down": [T.PadTransform(3, 4, 5, 6), resize(19, 23, before=(47, 61))],
    "pads": [T.PadTransform(3, 4, 5, 6), T.PadTransform(1, 1, 1, 1)],
    "rotation": [T.RotationTransform(HEIGHT, WIDTH, 30)],
    "extent": [T.ExtentTransform((3.5, 2.5, 40, 30), (30, 20))],
    "rotation, down": [T.RotationTransform(HEIGHT, WIDTH, 90), resize(20, 20, (WIDTH, HEIGHT))],
}


def by_decoding(segmentation, transforms, shape):
    if isinstance(segmentation, dict):
        return transforms.apply_segmentation(coco_mask.decode(segmentation)) != 0
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation]
    polygons = [transforms.apply_coords(part).reshape(-1) for part in parts]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))) != 0


def assert_same(segmentations, transforms, original=(HEIGHT, WIDTH)):
    """Compare with the slow way; the masks."""
    transforms = TransformList(transforms)
    shape = transforms.apply_segmentation(np.zeros(original, np.uint8)).shape
    found = transform_masks(segmentations, transforms, shape, original).tensor.numpy()
    assert found.dtype == bool
    assert found.shape[1:] == shape
    for number, (mask, segmentation) in enumerate(zip(found, segmentations, strict=True)):
        assert np.array_equal(mask, by_decoding(segmentation, transforms, shape)), (number, shape)
    return found


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_mask_is_that_of_decoding(name):
    assert_same(rles(*shapes().values()), TRANSFORMS[name])


def test_known_transforms_are_not_decoded():
    decoded = {
        name
        for name, transforms in TRANSFORMS.items()
        if source_lines(TransformList(transforms), HEIGHT, WIDTH) is None
    }
    assert decoded == {"rotation", "extent", "rotation, down"}


def test_padding_is_background_whatever_its_label():
    pads = [T.PadTransform(3, 4, 5, 6, seg_pad_value=value) for value in (0, 255)]
    shape = HEIGHT + 10, WIDTH + 8
    masks = rles(*shapes().values())
    background, labelled = (
        transform_masks(masks, TransformList([pad]), shape, (HEIGHT, WIDTH)) for pad in pads
    )
    assert torch.equal(background.tensor, labelled.tensor)


def test_all_ratios_of_sizes():
    rng = np.random.default_rng(1)
    lines = [(1, int(rng.integers(1, 9000)), 1, int(rng.integers(1, 2000))) for _ in range(30)]
    for height, width, new_height, new_width in (*rng.integers(1, 60, (200, 4)).tolist(), *lines):
        masks = rng.random((3, height, width)) < np.array([0.1, 0.5, 0.9])[:, None, None]
        masks[:, 0, 0] = True
        transforms = [resize(new_height, new_width, before=(height, width))]
        assert_same(rles(*masks), transforms, (height, width))


def test_runs_without_pixels_are_drawn():
    total = HEIGHT * WIDTH
    for counts in (
        [0, 0, 5, 3, total - 8],
        [5, 0, 0, 7, 0, 0, total - 12],
        [HEIGHT, 0, 3, 0, total - HEIGHT - 4, 1],
        [0, total],
        [total - 1, 1, 0, 0, 0],
        [4, 3, total - 7, 0],
    ):
        rle = clean_segmentation({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)
        assert_same([rle], [FLIP, resize(20, 70)])


def test_polygons_and_rles_may_be_mixed_and_leave_the_image():
    segmentations = [
        [[-10.0, -10, 30, -10, 30, 60, -10, 60], [40.5, 20.2, 70, 20, 45, 33.3]],
        *rles(shapes()["noise"]),
        [[100.0, 100, 120, 100, 120, 120]],
    ]
    found = assert_same(segmentations, [resize(50, 80)])
    assert found.any(axis=(1, 2)).tolist() == [True, True, False]
