"""Contour figures: cases counted by hand, the matching, and the evaluator on a data set."""

import math

import numpy as np
import pytest
from detectron2.evaluation import DatasetEvaluators
from pycocotools import mask as coco_mask

from solo_d2.config import default_config
from solo_d2.evaluation import build_evaluator
from solo_d2.evaluation.contours import (
    ContourEvaluator,
    contour_metrics,
    count_pixels,
    encode_contours,
)
from solo_d2.ops.contours import contour_masks
from solo_d2.utils.errors import DatasetError
from tests.evaluation import made_up
from tests.json_damage import rle_of

SIZE = (60, 80)  # a diagonal of 100 pixels
TOLERANCE = 2
SQUARE = (20, 20, 40, 40)  # XYXY; its contour has 76 pixels


def masks_of(*boxes):
    return made_up.masks_of(SIZE, *boxes).numpy()


def contours_of(*boxes):
    return contour_masks(made_up.masks_of(SIZE, *boxes)).numpy()


def lines_of(*columns):
    """Vertical lines of one pixel's width over the whole image."""
    return masks_of(*((column, 0, column + 1, SIZE[0]) for column in columns))


def figures(contours, true, *, scores=None, classes=None, true_classes=None, crowds=(), kinds=()):
    def integers(values, number):
        return np.zeros(number, np.int64) if values is None else np.array(values, np.int64)

    regions = {}
    for kind, crowd in zip(kinds, masks_of(*crowds), strict=True):
        regions[kind] = coco_mask.encode(np.asfortranarray(crowd, np.uint8))
    rows, num_true = count_pixels(
        encode_contours(contours, TOLERANCE),
        integers(classes, len(contours)),
        np.ones(len(contours)) if scores is None else np.array(scores, np.float64),
        encode_contours(true, TOLERANCE),
        integers(true_classes, len(true)),
        regions,
        num_classes=2,
    )
    return contour_metrics(rows, num_true.sum())


def test_perfect():
    both = contours_of(SQUARE, (50, 5, 70, 55))
    expected = {"F": 100, "precision": 100, "recall": 100, "threshold": 1}
    assert figures(both[::-1], both) == expected


@pytest.mark.parametrize(("shift", "expected"), [(0, 100), (TOLERANCE, 100), (TOLERANCE + 1, 0)])
def test_shifted(shift, expected):
    found = figures(lines_of(30 + shift), lines_of(30))
    assert [found[key] for key in ("F", "precision", "recall")] == [expected] * 3


def test_distance_is_euclidean():
    corner = masks_of((30, 30, 31, 31))
    assert figures(masks_of((31, 31, 32, 32)), corner)["F"] == 100  # sqrt(2)
    assert figures(masks_of((32, 31, 33, 32)), corner)["F"] == 0  # sqrt(5)


def test_precision_and_recall_by_hand():
    # Of 60 pixels 45 are predicted, and 15 beside.
    predicted = masks_of((30, 0, 31, 45)) | masks_of((60, 0, 61, 15))
    found = figures(predicted, lines_of(30))
    assert found["precision"] == pytest.approx(100 * 45 / 60)
    assert found["recall"] == pytest.approx(100 * (45 + TOLERANCE) / 60)
    p, r = found["precision"], found["recall"]
    assert found["F"] == pytest.approx(2 * p * r / (p + r))


def test_no_predictions():
    found = figures(contours_of(), contours_of(SQUARE))
    assert (found["F"], found["recall"]) == (0, 0)
    assert math.isnan(found["precision"])
    empty = figures(np.zeros((1, *SIZE), dtype=bool), contours_of(SQUARE))
    assert empty["F"] == 0


@pytest.mark.parametrize("boxes", [(), (SQUARE,)])
def test_no_objects(boxes):
    found = figures(contours_of(*boxes), contours_of())
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("predicted", "classes", "expected"),
    [((SQUARE,), [1], (0, 0)), ((SQUARE, SQUARE), [0, 0], (50, 100))],
    ids=["another class", "a duplicate"],
)
def test_what_does_not_match(predicted, classes, expected):
    found = figures(contours_of(*predicted), contours_of(SQUARE), classes=classes)
    assert (found["precision"], found["recall"]) == expected


def test_the_better_score_chooses_first_and_takes_the_best():
    true = lines_of(10, 13)
    # The second one is better, is near to both lines, and equals the second line.
    found = figures(lines_of(11, 13), true, scores=[0.4, 0.8])
    assert found["F"] == 100
    partly = masks_of((13, 0, 14, 30)) | masks_of((10, 30, 11, 45))
    taken = figures(np.concatenate([partly, lines_of(13)]), true, scores=[0.8, 0.4])
    assert taken["F"] < 100


def test_threshold_is_the_best_for_the_data_set():
    true = contours_of(SQUARE, (50, 5, 70, 55))
    predicted = np.concatenate([true, contours_of((2, 2, 12, 50))])
    found = figures(predicted, true, scores=[0.9, 0.6, 0.3])
    assert (found["F"], found["threshold"]) == (100, 0.6)
    # At equal scores the wrong one cannot be left out.
    tied = figures(predicted, true, scores=[0.9, 0.6, 0.6])
    assert tied["F"] < 100
    assert tied["precision"] < 100


def test_crowd_regions():
    wrong, true = contours_of((50, 10, 70, 30)), contours_of(SQUARE)
    both = np.concatenate([true, wrong])
    assert figures(both, true, crowds=[(45, 5, 75, 35)], kinds=[0])["precision"] == 100
    assert figures(both, true, crowds=[(45, 5, 75, 35)], kinds=[1])["precision"] == 50
    half = figures(both, true, crowds=[(45, 5, 60, 35)], kinds=[0])["precision"]
    assert half == pytest.approx(100 * 76 / (76 + 38))


@pytest.fixture
def dataset(tmp_path):
    """Two images with the same objects."""
    region = (45, 5, 75, 35)
    crowd = {"iscrowd": 1, "segmentation": rle_of(masks_of(region)[0])}
    content = {
        "images": made_up.images_of(SIZE, 3, 5),
        "annotations": [
            made_up.rectangle(1, SQUARE, 3, 7),
            made_up.rectangle(2, region, 3, 7, **crowd),
            made_up.rectangle(3, SQUARE, 5, 7),
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    return made_up.register_json(tmp_path, "contours_val", content)


def instances(*boxes, size=SIZE):
    found = made_up.rectangles(size, *boxes, classes=[1] * len(boxes))
    found.pred_masks = contour_masks(found.pred_masks)
    return found


def test_evaluator_of_a_model_of_contours(dataset, tmp_path):
    cfg = default_config()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.MODEL.SOLO.MASK_TARGET = "contour"
    evaluator = build_evaluator(cfg, dataset)
    assert isinstance(evaluator, DatasetEvaluators)
    for _ in range(2):  # nothing is left of what was found before
        evaluator.reset()
        found = instances(SQUARE, (50, 10, 70, 30))  # the second one in the crowd region
        evaluator.process([{"image_id": 3}], [{"instances": found}])
        evaluator.process([{"image_id": 5}], [{}])
        results = evaluator.evaluate()
    assert list(results)[0] == "contours"
    found = results["contours"]
    assert (found["precision"], found["recall"]) == (100, 50)  # of both images together
    assert found["F"] == found["F-dog"] == pytest.approx(200 / 3)
    assert math.isnan(found["F-cat"])
    assert results["bbox"]["AP"] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize(("shift", "near"), [(1, True), (2, False)])
def test_tolerance_is_a_share_of_the_diagonal_rounded_up(dataset, shift, near):
    evaluator = ContourEvaluator(dataset)
    x0, y0, x1, y1 = SQUARE
    found = instances((x0 + shift, y0, x1 + shift, y1))
    evaluator.process([{"image_id": 3}], [{"instances": found}])
    assert (evaluator.evaluate()["contours"]["F"] == 100) == near


def test_what_does_not_belong_to_the_data_set_is_named(dataset):
    evaluator = ContourEvaluator(dataset)
    with pytest.raises(DatasetError, match="no image 4"):
        evaluator.process([{"image_id": 4}], [{"instances": instances()}])
    with pytest.raises(DatasetError, match=r"3\.jpg has 30 x 40 pixels.*60 x 80"):
        evaluator.process([{"image_id": 3}], [{"instances": instances(size=(30, 40))}])
