"""Load: memory that does not grow, thousands of objects, images of extreme sizes.

The long forms are run by `python -m pytest -m reliability`.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from solo_d2 import Predictor, Result
from solo_d2.api.classes import Classes
from solo_d2.data import SOLODatasetMapper, load_coco_format, register_coco_format
from solo_d2.evaluation.coco_results import FastCOCOEvaluator
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY
from tests.api.models import picture
from tests.export.models import small_config, small_model
from tests.growth import MIB, growth
from tests.json_damage import save_boxes
from tests.modeling import tiny
from tools.benchmarks.common import peak_memory

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]


reliability = pytest.mark.reliability
HEADS = sorted(name for name, _ in SOLO_HEAD_REGISTRY)
# Images that come again and again.
PICTURES = [picture(*size, seed=i) for i, size in enumerate([(48, 64), (64, 40), (30, 90), (7, 5)])]


def long_and_short(short, long):
    """A number for every run of the tests, and one for `-m reliability`."""
    return [short, pytest.param(long, marks=reliability)]


# ---------------------------------------------------------------- memory does not grow


def load(folder, device="cpu"):
    """A predictor whose inference takes milliseconds."""
    cfg = small_config(*("INPUT.MIN_SIZE_TEST", 48, "INPUT.MAX_SIZE_TEST", 64))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    torch.save({"model": small_model().state_dict()}, folder / "model.pth")
    return Predictor(cfg, folder / "model.pth", device=device, score_thresh=0.0)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(tmp_path_factory.mktemp("model"))


def look(predictor, index):
    """All that is made of an image."""
    result = predictor(PICTURES[index % len(PICTURES)])
    assert len(result) > 0
    result.draw()
    result.to_dicts()


# Bytes that are no growth, of a number of inferences in which a leak of 100 KiB each would be a
# hundred times as much.
def allowed(number):
    return 4 * MIB if number < 1000 else 16 * MIB


@pytest.mark.parametrize("number", long_and_short(120, 10_000))
def test_inferences_leave_no_memory_behind(predictor, number):
    assert growth(lambda index: look(predictor, index), number) < allowed(number)


def test_a_leak_would_be_seen():
    kept = []
    assert growth(lambda _: kept.append(torch.ones(100 << 8)), 120) > allowed(120)  # 100 KiB


@pytest.mark.gpu
@pytest.mark.parametrize("number", long_and_short(120, 10_000))
def test_inferences_leave_no_gpu_memory_behind(tmp_path, number):
    predictor = load(tmp_path, "cuda")
    for measure, most in (
        (torch.cuda.memory_allocated, 1),
        (torch.cuda.memory_reserved, allowed(number)),
    ):
        assert growth(lambda index: look(predictor, index), number, measure) < most


# ---------------------------------------------------------------- thousands of objects

# Objects, the side of the square image on which they lie in rows, and MiB beyond what was there
# before that a step of training and an inference may take. Most are masks of the size of the image,
# a byte a pixel: those of the truth, of the predictions, and their copies for the json.
CROWDS = long_and_short((300, 160, 300), (3000, 512, 4000))
CLASSES = ["disc", "ring", "square", "cross", "star"]


def crowd(folder, number, side):
    """Register a data set of one image with many objects."""
    columns = int(np.ceil(number**0.5))
    pitch = side // columns
    size = pitch - 2
    pixels = np.full((side, side, 3), 60, np.uint8)
    boxes = []
    for index in range(number):
        x, y = pitch * (index % columns), pitch * (index // columns)
        pixels[y : y + size, x : x + size] = 40 * (index % 5) + 80
        boxes.append((index % 5 + 1, x, y, size, size))
    cv2.imwrite(str(folder / "1.png"), pixels)
    save_boxes(folder / "crowd.json", (side, side), [boxes], CLASSES)
    register_coco_format("crowd", folder / "crowd.json", folder)


def crowd_config(number, side):
    cfg = tiny.tiny_config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (side,), side
    solo = cfg.MODEL.SOLO
    solo.NUM_GRIDS, solo.SCALE_RANGES = [64, 36, 24, 16, 12], [[1, 2048]] * 5
    solo.HEAD.PRIOR_PROB = 0.5
    solo.SCORE_THRESH_TEST = solo.KEEP_THRESH_TEST = 0.0
    solo.PRE_NMS_TOPK = cfg.TEST.DETECTIONS_PER_IMAGE = number
    return cfg


@pytest.mark.parametrize("crowded", CROWDS)
def test_a_crowd_is_trained_on_found_drawn_and_evaluated(tmp_path, crowded):
    number, side, mebibytes = crowded
    crowd(tmp_path, number, side)
    cfg = crowd_config(number, side)
    model = tiny.tiny_model(cfg, sure=True)
    (record,) = load_coco_format("crowd", tmp_path / "crowd.json", tmp_path)

    def chain():
        sample = SOLODatasetMapper(cfg, is_train=True)(record)
        assert len(sample["instances"]) == number
        with EventStorage() as storage:
            losses = model.train()([sample])
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        # Each object has a sample at each of five levels at least.
        assert storage.latest()["targets/num_mask_samples"][0] >= 5 * number
        with torch.no_grad():
            output = model.eval()([{**sample, "height": side, "width": side}])[0]
        found = output["instances"]
        assert len(found) == number  # that many at most; there are more candidates
        classes = Classes(CLASSES, [1, 2, 3, 4, 5])
        result = Result(found, np.zeros((side, side, 3), np.uint8), "crowd", classes)
        assert result.draw().shape == (side, side, 3)
        assert len(result.to_coco(1)) == number
        evaluator = FastCOCOEvaluator("crowd", None)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [output])
        assert np.isfinite(evaluator.evaluate()["segm"]["AP"])

    assert peak_memory(chain, torch.device("cpu")) < mebibytes * MIB


# ---------------------------------------------------------------- extreme sizes

PANOPTIC = "panoptic"


def model_of(kind):
    cfg = tiny.panoptic_config() if kind == PANOPTIC else tiny.tiny_config(kind)
    cfg.MODEL.SOLO.KEEP_THRESH_TEST = 0.0
    return tiny.tiny_model(cfg, sure=True)


def one_pixel():
    """An image of a pixel that is an object."""
    sample = tiny.image(1, 1, num=1)
    sample["instances"].gt_masks.tensor[:] = True
    sample["instances"].gt_boxes.tensor[:] = torch.tensor([0.0, 0, 1, 1])
    return tiny.with_sem_seg(sample)


@pytest.mark.parametrize("largest", [None, *long_and_short((96, 160), (1333, 800))])
@pytest.mark.parametrize("kind", [*HEADS, PANOPTIC])
def test_the_smallest_image_alone_and_beside_the_largest(kind, largest):
    others = [largest, largest[::-1]] if largest else []
    batch = [one_pixel(), *(tiny.with_sem_seg(tiny.image(*size)) for size in others)]
    model = model_of(kind)
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        results = model.eval()([{**batch[0], "height": 3, "width": 2}, *batch[1:]])
    for result, expected in zip(results, [(3, 2), *others], strict=True):
        found = result["instances"]
        assert found.pred_masks.shape == (len(found), *expected)
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert found.pred_boxes.tensor.isfinite().all()
        if kind == PANOPTIC:
            assert result["panoptic_seg"][0].shape == expected
