"""Tiled inference: an oracle finds the objects of each tile, and each comes out once and whole."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from solo_d2.modeling.tiles import SOLOWithTiles, Tiles, find_in_tiles
from solo_d2.ops.mask_crops import MaskCrops
from solo_d2.ops.rle import encode_masks
from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import image as sample_image
from tests.modeling.tiny import panoptic_config, tiny_config, tiny_model

pytestmark = pytest.mark.detectron2

AS_IT_IS = T.ResizeShortestEdge(0, 1)


def picture(size, boxes):
    """Objects of the colours 1, 2, ... on black."""
    image = np.zeros((*size, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        image[top:bottom, left:right] = number
    return image


def crowd(size, side, seed=0):
    """Boxes of at most `side` pixels that do not touch, in all places."""
    rng = np.random.default_rng(seed)
    boxes = []
    for y in range(0, size[0] - side, side + 1):
        for x in range(0, size[1] - side, side + 1):
            left, top = (int(low + rng.integers(side // 2)) for low in (x, y))
            boxes.append((left, top, x + side, y + side))
    return boxes


def oracle(images):
    """Find the part of each object that is seen, the smaller the surer."""
    results = []
    for image in images:
        numbers = np.unique(image[image > 0]).tolist()
        masks = torch.tensor(np.array([image[:, :, 0] == number for number in numbers]))
        masks = masks.reshape(-1, *image.shape[:2])
        scores = 1 - masks.sum(dim=(1, 2)) / image[:, :, 0].size
        classes = torch.zeros(len(numbers), dtype=torch.int64)
        fields = {"pred_masks": masks, "scores": scores, "pred_classes": classes}
        results.append(Instances(image.shape[:2], **fields))
    return results


def assert_whole(found, image, num):
    """Each object was found once, and as it is."""
    assert found.image_size == image.shape[:2]
    assert len(found) == num
    masks = found.pred_masks.whole()
    numbers = [int(image[:, :, 0][mask][0]) for mask in masks.numpy()]
    assert sorted(numbers) == list(range(1, num + 1))
    for mask, number in zip(masks.numpy(), numbers, strict=True):
        np.testing.assert_array_equal(mask, image[:, :, 0] == number)
    assert torch.equal(found.pred_boxes.tensor, found.pred_masks.boxes())
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("size", [(137, 211), (100, 100), (90, 301), (64, 20)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_objects_across_seams_come_out_once_and_whole(size, batch_size):
    boxes = crowd(size, 17)
    image = picture(size, boxes)
    found = find_in_tiles(image, Tiles(64, 22), oracle, AS_IT_IS, batch_size=batch_size)
    assert_whole(found, image, len(boxes))


@pytest.mark.parametrize("num_classes", [1, 2])
def test_duplicates_of_two_tiles_are_those_of_one_class(num_classes):
    calls = []

    def find(images):
        (found,) = oracle(images)
        found.pred_classes += len(calls) % num_classes
        calls.append(found)
        return [found]

    image = picture((64, 110), [(48, 10, 60, 30)])  # whole in both tiles
    found = find_in_tiles(image, Tiles(64, 18), find, AS_IT_IS)
    assert len(calls) == 2
    assert found.pred_classes.tolist() == list(range(num_classes))


def test_objects_larger_than_the_overlap_are_those_of_the_whole_image():
    boxes = [(5, 20, 150, 90), (160, 5, 170, 15)]
    image = picture((120, 200), boxes)
    parts = find_in_tiles(image, Tiles(64, 16), oracle, AS_IT_IS)
    assert len(parts) > 2
    found = find_in_tiles(image, Tiles(64, 16, whole_image=True), oracle, AS_IT_IS)
    assert_whole(found, image, 2)


def test_masks_of_the_whole_image_are_made_small_and_enlarged():
    sizes = []

    def find(images):
        sizes.extend(image.shape[:2] for image in images)
        return oracle([np.where(image > 100, 255, 0).astype(np.uint8) for image in images])

    image = np.zeros((240, 400, 3), np.uint8)
    image[40:180, 60:300] = 255
    resize = T.ResizeShortestEdge(60, 1000)
    found = find_in_tiles(image, Tiles(100, 20, whole_image=True), find, resize)
    assert sizes[-1] == (60, 100)
    assert len(found) == 1
    expected = torch.from_numpy(image[:, :, 0] > 0)
    mask = found.pred_masks.whole()[0]
    assert (mask & expected).sum() > 0.98 * (mask | expected).sum()


def test_an_image_without_instances():
    for size in ((50, 300), (1, 1)):
        tiles = Tiles(64, whole_image=True)
        found = find_in_tiles(picture(size, []), tiles, oracle, AS_IT_IS)
        assert len(found) == 0
        assert found.pred_masks.whole().shape == (0, *size)
        assert found.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("side", [1, 63, 64, 65, 200, 5500])
def test_tiles_cover_the_image_and_overlap(side):
    windows = Tiles(64, 20).windows((10, side))
    assert {window[1::2] for window in windows} == {(0, 10)}
    spans = [window[::2] for window in windows]
    assert spans[0][0] == 0
    assert spans[-1][1] == side
    assert all(end - start == min(64, side) for start, end in spans)
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert end - start >= 20


class WholeMasks(TorchDispatchMode):
    """Counts the maps of one size in the tensors that are made."""

    def __init__(self, size):
        super().__init__()
        self.size, self.num = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-2:] == self.size:
            self.num += result.shape[:-2].numel()
        return result


def test_no_mask_of_the_size_of_the_image_is_held():
    size = (700, 900)
    boxes = crowd(size, 50)
    image = picture(size, boxes)
    with WholeMasks(size) as made:
        found = find_in_tiles(image, Tiles(128, 55), oracle, AS_IT_IS)
        codes = encode_masks(found.pred_masks)
    assert made.num == 0
    assert len(codes) == len(boxes) > 200
    # The masks in their boxes lie side by side.
    assert found.pred_masks.pixels.numel() <= size[0] * size[1]
    with WholeMasks(size) as made:
        assert codes == encode_masks(found.pred_masks.whole())
    assert made.num >= len(boxes)


def test_a_tile_as_large_as_the_image_changes_nothing():
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.TILES.SIZE = 96, 200
    model = tiny_model(cfg, sure=True).eval()
    sample = sample_image(96, 128)
    sample["image"] = sample["image"].byte()
    with torch.no_grad():
        expected = model([sample])[0]["instances"]
        found = SOLOWithTiles(cfg, model)([sample])[0]["instances"]
    assert isinstance(found.pred_masks, MaskCrops)
    assert len(found) == len(expected) > 10
    for name in ("scores", "pred_classes"):
        assert torch.equal(found.get(name), expected.get(name))
    assert torch.equal(found.pred_masks.whole(), expected.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("values", [(0,), (-5,), (64, 64), (64, -1), (64.5,), (64, 3.5), (True,)])
def test_sizes_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match=r"tiles is"):
        Tiles(*values)


def test_models_that_cannot_be_merged_are_refused():
    cfg = panoptic_config()
    cfg.TEST.TILES.SIZE = 64
    with pytest.raises(ConfigError, match="panoptic"):
        SOLOWithTiles(cfg, tiny_model(cfg))
    contours = tiny_config()
    contours.TEST.TILES.SIZE, contours.MODEL.SOLO.MASK_TARGET = 64, "contour"
    with pytest.raises(ConfigError, match="contours"):
        SOLOWithTiles(contours, tiny_model(contours))
    with pytest.raises(ConfigError, match=r"TEST.TILES.SIZE.*Linear"):
        SOLOWithTiles(cfg, nn.Linear(2, 2))
