"""Large scale jitter: sizes, padding, and masks of every kind at the same place."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from solo_d2.config import default_config
from solo_d2.data import SOLODatasetMapper
from solo_d2.data.augmentation import usual_short_side, without_randomness
from solo_d2.utils.errors import ConfigError
from tests.evaluation.made_up import rectangle
from tests.json_damage import rle_of
from tests.pictures import save

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH, SIZE = 40, 60, 96


def config(*overrides):
    cfg = default_config()
    cfg.INPUT.LSJ.ENABLED = True
    cfg.INPUT.LSJ.SIZE = SIZE
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.fixture
def record(tmp_path):
    """White objects on black: one as a polygon, beyond the right border, and one as RLE."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:24, 10:30] = 255
    image = mask.copy()
    image[26:38, 40:] = 255
    file = save(tmp_path / "a.png", image[..., None].repeat(3, 2))
    mode, rle = {"bbox_mode": BoxMode.XYWH_ABS}, rle_of(mask > 0)
    annotations = [
        rectangle(1, (10, 8, 30, 24), 1, 0, segmentation=rle, **mode),
        rectangle(2, (40, 26, 70, 38), 1, 0, **mode),
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    return {"file_name": str(file), **size, "annotations": annotations}


def test_objects_stay_on_their_pixels_at_every_scale(record):
    mapper = SOLODatasetMapper(config())
    padded, cropped = 0, 0
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record)
        image, instances = sample["image"], sample["instances"]
        assert image.shape == (3, SIZE, SIZE)
        assert instances.image_size == (SIZE, SIZE)
        union = instances.gt_masks.tensor.any(dim=0)
        grey = (image == 128).all(dim=0)
        white = (image[0] > 127) & ~grey
        # Interpolated borders of the image, and the padding's own grey, apart.
        assert (union != white).float().mean() < 0.02
        padded += bool(grey[:, -1].all())
        cropped += not grey.any()
        for mask, box in zip(instances.gt_masks.tensor, instances.gt_boxes.tensor, strict=True):
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(value) for value in tight]
    assert padded > 2
    assert cropped > 2


def test_scale_one_fits_the_square(record):
    cfg = config("INPUT.LSJ.SCALE_RANGE", [1.0, 1.0], "INPUT.RANDOM_FLIP", "none")
    sample = SOLODatasetMapper(cfg)(record)
    assert (sample["image"][:, 64:] == 128).all()  # 40 x 60 became 64 x 96
    assert sample["instances"].gt_boxes.tensor[1].tolist() == [64, 42, 96, 61]
    stuff = without_randomness(config())
    assert torch.equal(SOLODatasetMapper(stuff)(record)["image"], sample["image"])


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="INPUT.LSJ.SIZE is 0"):
        SOLODatasetMapper(config("INPUT.LSJ.SIZE", 0))


def test_usual_short_side():
    cfg = config("INPUT.LSJ.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", (640, 800, 672))
    assert usual_short_side(cfg) == 672
    cfg.INPUT.MIN_SIZE_TRAIN = (640, 800)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    assert usual_short_side(cfg) == 720
    assert usual_short_side(config()) == SIZE


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (40, 8000), (3, 2)])
@pytest.mark.parametrize("kind", ["default", "crop", "jitter", "test"])
def test_no_image_is_too_narrow(tmp_path, size, kind):
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((*size, 3), 90, np.uint8))
    cfg = default_config()
    given = cfg.INPUT
    given.MIN_SIZE_TRAIN, given.MAX_SIZE_TRAIN = (64,), 96
    given.MIN_SIZE_TEST, given.MAX_SIZE_TEST = 64, 96
    given.CROP.ENABLED, given.CROP.TYPE, given.CROP.SIZE = kind == "crop", "relative", [0.2, 0.2]
    given.LSJ.ENABLED, given.LSJ.SIZE, given.LSJ.SCALE_RANGE = kind == "jitter", 64, [0.1, 0.2]
    record = {"file_name": str(file), "image_id": 1, "annotations": []}
    sample = SOLODatasetMapper(cfg, is_train=kind != "test")(record)
    height, width = sample["image"].shape[1:]
    assert 1 <= min(height, width) <= max(height, width) <= 96
    assert (sample["height"], sample["width"]) == size
    assert (sample["image"] == 90).any()
