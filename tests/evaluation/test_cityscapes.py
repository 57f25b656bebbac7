"""Cityscapes' AP is that of cityscapesScripts; its instances are read from the PNGs."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_cityscapes
from detectron2.structures import BoxMode, Instances
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.config import default_config
from solo_d2.data import check_datasets
from solo_d2.data.cityscapes_format import label_ids, read_instance_ids
from solo_d2.evaluation import build_evaluator
from solo_d2.evaluation.cityscapes import CityscapesEvaluator
from solo_d2.utils.errors import DatasetError

pytestmark = pytest.mark.detectron2

CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
LABELS = [24, 25, 26, 27, 28, 31, 32, 33]
SIZE = (90, 140)
NAME = "cityscapes_fine_instance_seg_val"
# AP and AP50 of cityscapesScripts 2.3.0 for the cases of each seed.
EXPECTED = {
    0: (30.989478933374613, 55.652154082301145),
    3: (15.634345155735529, 38.23795246735588),
}


def ellipse(rng, radius):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    cy, cx = rng.integers(SIZE[0]), rng.integers(SIZE[1])
    a, b = rng.uniform(3, radius, 2)
    return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1


def made_up_ids(rng):
    """Objects, groups, unlabelled pixels and caravans (which are not evaluated)."""
    ids = np.full(SIZE, 7, np.int32)
    ids[:20], ids[:, :15] = rng.choice([0, 4, 23]), 9
    for number in range(10):
        label, mask = LABELS[rng.integers(4)], ellipse(rng, 25)
        ids[mask] = label if rng.random() < 0.2 else 1000 * label + number
        if rng.random() < 0.2:
            ids[ellipse(rng, 15)] = 29000 + number
    return ids


def made_up_predictions(rng, ids):
    """Moved copies of the objects, some of a wrong class, and what overlaps nothing."""
    masks, classes, scores = [], [], []
    for key in np.unique(ids).tolist():
        label = key // 1000 if key >= 1000 else key
        for _ in range(rng.integers(0, 4) if label in LABELS else 0):
            masks.append(np.roll(ids == key, rng.integers(-2, 3, 2), (0, 1)))
            classes.append(LABELS.index(label) if rng.random() < 0.8 else int(rng.integers(8)))
            scores.append(round(rng.random(), 1))
    for _ in range(4):
        masks.append(ellipse(rng, 20))
        classes.append(int(rng.integers(8)))
        scores.append(rng.random())
    masks, classes, scores = [*masks, np.zeros(SIZE, bool)], [*classes, 0], [*scores, 0.5]
    return Instances(
        SIZE,
        pred_masks=torch.tensor(np.stack(masks)),
        pred_classes=torch.tensor(classes),
        scores=torch.tensor(scores, dtype=torch.float64),
    )


@pytest.fixture
def folder(tmp_path):
    """The root of Detectron2's built-in data sets, with its Cityscapes registered there."""
    for name in [name for name in DatasetCatalog if name.startswith("cityscapes_fine_")]:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    register_all_cityscapes(tmp_path)
    return tmp_path / "cityscapes"


def write(folder, number, ids):
    name = f"bonn_{number:06}_000019"
    image = folder / f"leftImg8bit/val/bonn/{name}_leftImg8bit.png"
    truth = folder / f"gtFine/val/bonn/{name}_gtFine_instanceIds.png"
    for file, pixels in ((image, np.zeros((*SIZE, 3), np.uint8)), (truth, ids.astype(np.uint16))):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return {"file_name": str(image)}


@pytest.mark.parametrize("seed", EXPECTED)
def test_ap_is_that_of_cityscapes_scripts(folder, seed):
    rng = np.random.default_rng(seed)
    evaluator = CityscapesEvaluator(NAME)
    evaluator.reset()
    for number in range(6):
        ids = made_up_ids(rng)
        record, found = write(folder, number, ids), made_up_predictions(rng, ids)
        evaluator.process([record], [{"instances": found}])
    found = evaluator.evaluate()["segm"]
    assert (found["AP"], found["AP50"]) == pytest.approx(EXPECTED[seed], rel=0, abs=1e-9)


def test_images_without_predictions_and_objects(folder):
    ids = np.full(SIZE, 7)
    evaluator = CityscapesEvaluator(NAME)
    evaluator.process([write(folder, 1, ids)], [{}])
    assert all(math.isnan(value) for value in evaluator.evaluate()["segm"].values())
    ids[10:30, 10:30] = 26001
    evaluator.process([write(folder, 2, ids)], [{}])
    assert evaluator.evaluate() == {"segm": {"AP": 0, "AP50": 0}}


def test_instances_are_those_of_the_pngs(folder):
    assert label_ids(CLASSES) == LABELS
    ids = np.full(SIZE, 7)
    ids[10:30, 20:50], ids[40:45, 60:70], ids[50:60, :9] = 26003, 24, 29001
    write(folder, 1, ids)
    cfg = default_config()
    assert isinstance(build_evaluator(cfg, NAME), CityscapesEvaluator)
    check_datasets([NAME])
    (record,) = DatasetCatalog.get(NAME)
    assert (record["height"], record["width"]) == SIZE
    assert record["image_id"] == "bonn_000001_000019_leftImg8bit.png"
    group, car = record["annotations"]
    assert (group["iscrowd"], car["iscrowd"]) == (1, 0)
    assert (group["category_id"], car["category_id"]) == (0, 2)
    assert (car["bbox"], car["bbox_mode"]) == ([20, 10, 30, 20], BoxMode.XYWH_ABS)
    for annotation, key in ((group, 24), (car, 26003)):
        mask = coco_mask.decode(annotation["segmentation"])
        np.testing.assert_array_equal(mask, ids == key)


def test_files_that_are_missing_or_broken_are_named(folder):
    evaluator = CityscapesEvaluator(NAME)
    with pytest.raises(DatasetError, match="gtFine_instanceIds"):
        evaluator.check_truth()
    record = write(folder, 1, np.full(SIZE, 7))
    evaluator.check_truth()
    (truth,) = folder.glob("gtFine/val/bonn/*.png")
    truth.write_bytes(b"no image")
    check_datasets([NAME])
    for use in (
        evaluator.check_truth,
        lambda: evaluator.process([record], [{}]),
        lambda: DatasetCatalog.get(NAME),
    ):
        with pytest.raises(DatasetError, match=truth.name):
            use()


def test_a_color_png_is_no_png_of_instance_ids(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png has the mode 'RGB'"):
        read_instance_ids(tmp_path / "a.png")
