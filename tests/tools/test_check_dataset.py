"""check_dataset: everything wrong is listed, lost objects are found, proposals are as derived."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances

from solo_d2.data.coco_format import register_coco_format
from solo_d2.data.ignored import find_ignored
from solo_d2.engine import Trainer
from solo_d2.utils.errors import DatasetError
from tests.evaluation.made_up import images_of, masks_of, rectangle
from tests.modeling.tiny import tiny_config
from tools import check_dataset
from tools.dataset_check.objects import (
    ASSIGNED,
    NO_CELL,
    NO_MASK,
    NO_RANGE,
    OUTCOMES,
    OUTSIDE,
    VANISHED,
    TargetRule,
    object_type,
)
from tools.dataset_check.proposal import (
    Levels,
    propose,
    propose_grid,
    propose_ranges,
    shared_cells,
)

pytestmark = pytest.mark.detectron2

SIZE = (96, 128)
OUTSIDE_BOX = (520, 520, 570, 570)
STRIDES = [8, 8, 16, 32, 32]
PUBLISHED_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]


# --- what becomes of objects


def instances(*boxes):
    """Rectangles (XYXY)."""
    return Instances(
        SIZE,
        gt_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)),
        gt_classes=torch.zeros(len(boxes), dtype=torch.int64),
        gt_masks=BitMasks(masks_of(SIZE, *boxes)),
    )


RANGES = {"SCALE_RANGES": [[1, 24], [12, 30], [24, 39], [48, 160], [96, 512]]}
# 12 pixels about the middle of a cell of 12.8 x 9.6: a claim on that cell alone, at one level.
# The later one is on top; both are equally near, but it is smaller.
SAME_CELL = [[52, 48, 62, 58], [53, 49, 61, 57]]


@pytest.mark.parametrize(
    ("keys", "boxes", "expected"),
    [
        ({}, [[10, 10, 50, 40]], [ASSIGNED]),
        (RANGES, [[0, 0, 40, 40], [0, 0, 20, 20]], [NO_RANGE, ASSIGNED]),
        # The masks have a pixel for 4 x 4, made of the middle 2 x 2.
        ({}, [[10, 8, 20, 9], [40, 40, 60, 60]], [NO_MASK, ASSIGNED]),
        *(
            ({"CELL_CONFLICT": c}, SAME_CELL, [NO_CELL, ASSIGNED])
            for c in ("all", "last", "nearest")
        ),
        ({"CELL_CONFLICT": "all"}, [SAME_CELL[0], [90, 20, 98, 28]], [ASSIGNED, ASSIGNED]),
    ],
)
def test_what_becomes_of_objects(keys, boxes, expected):
    cfg = tiny_config()  # grids 10, 8, 6, 5, 4; scales from 1 to 512
    for key, value in keys.items():
        cfg.MODEL.SOLO[key] = value
    rule = TargetRule(cfg)
    assert rule.padded_size(75, 100) == SIZE  # the model's
    assert rule.objects(instances(*boxes))["outcome"].tolist() == expected


# --- proposals


def objects(scales, centers=None, images=None):
    """Squares of some scales, in an input of 1 x 1 that their centres are relative to."""
    found = np.zeros(len(scales), object_type())
    found["image"] = np.arange(len(scales)) if images is None else images
    rng = np.random.default_rng(0)
    found["center"] = rng.random((len(scales), 2)) if centers is None else centers
    found["box"][:, 2:] = np.asarray(scales)[:, None]
    found["input"], found["area"] = 1, 1
    return found


def test_shared_cells_by_hand():
    centers = [[0.1, 0.1], [0.2, 0.2], [0.6, 0.1], [0.1, 0.1], [1.0, 1.0]]
    found = objects([1] * 5, centers, [0, 0, 0, 1, 1])
    assert shared_cells(found, 2) == pytest.approx(1 / 5)
    assert shared_cells(found, 10) == 0
    assert shared_cells(found, 1) == pytest.approx(3 / 5)
    assert np.isnan(shared_cells(found[:0], 2))


@pytest.mark.parametrize(
    ("largest", "base"),
    # As in COCO at 800 pixels and at 448; not below 3 strides, nor above 12.
    [(384, 48), (224, 28), (40, 24), (2000, 96)],
)
def test_ranges_put_a_tenth_of_the_objects_into_the_last_level(largest, base):
    scales = np.r_[np.full(899, 5.0), np.full(101, float(largest))]
    lows = [base * 2**level for level in range(5)]
    expected = [[1, lows[1]], *([lows[i], lows[i + 2]] for i in range(3)), [lows[3], 2048]]
    assert propose_ranges(scales, [[1, 2]] * 5, STRIDES) == expected


def test_ranges_that_fit_are_kept():
    scales = np.r_[np.full(880, 5.0), np.full(120, 400.0)]
    assert propose_ranges(scales, PUBLISHED_RANGES, STRIDES) == PUBLISHED_RANGES
    # Unless an object is larger than all of them.
    assert propose_ranges(np.r_[scales, 3000], PUBLISHED_RANGES, STRIDES)[-1] == [400, 3000]


def test_ranges_of_other_numbers_of_levels():
    scales = np.full(10, 100.0)
    assert propose_ranges(scales, [[3, 5]], [8]) == [[1, 2048]]
    assert propose_ranges(scales, [[3, 5], [4, 6]], [8, 16]) == [[1, 200], [100, 2048]]


def test_a_grid_grows_until_few_share_a_cell():
    # Pairs at a distance of 0.03 in x, in the middle of the cells of a grid of 16.
    places = (np.random.default_rng(0).integers(0, 15, (200, 2)) + 0.49) / 16
    images = np.tile(np.arange(200), 2)
    found = objects([1] * 400, np.concatenate([places, places + [0.03, 0]]), images)
    side = propose_grid(found, 12, 80)
    assert shared_cells(found, side) <= 0.06
    assert side > 12
    assert all(shared_cells(found, smaller) > 0.06 for smaller in range(12, side, 4))
    assert propose_grid(found, side + 4, 80) == side + 4  # never smaller
    # Objects at the very same place never part: no grid is worth it.
    assert propose_grid(objects([1] * 400, np.tile(places, (2, 1)), images), 12, 80) == 12


def test_a_proposal_counts_before_and_after():
    levels = Levels([40, 36, 24, 16, 12], PUBLISHED_RANGES)
    found = objects(np.r_[np.full(50, 20.0), np.full(10, 500.0)])
    proposal = propose(found, levels, STRIDES)
    assert proposal.num_grids == levels.num_grids
    assert [count for count, _ in levels.counts(found)] == [50, 0, 0, 10, 10]
    assert np.isnan(levels.counts(found)[1][1])
    assert sum(count for count, _ in proposal.counts(found)) >= 60
    found["area"] = 0  # nothing is left of them
    assert propose(found, levels, STRIDES) is None


# --- the command


BOX = (20, 20, 70, 70)


def good_content(**others):
    crowd = {"size": [96, 128], "counts": [2000, 300, 9988]}
    return {
        "images": images_of(SIZE, 1, 2, 3, extension="png"),
        "annotations": [
            rectangle(1, BOX, 1, 1),
            rectangle(2, BOX, 2, 2),
            rectangle(3, BOX, 2, 1, iscrowd=1, segmentation=crowd),
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **others,
    }


@pytest.fixture
def check(tmp_path):
    """Write a json, run the command on it: `check(content, *arguments)` -> (code, report)."""
    images, output = tmp_path / "images", tmp_path / "output"
    for folder in (images, output):
        folder.mkdir()
    for key in (1, 2, 3):
        cv2.imwrite(str(images / f"{key}.png"), np.full((96, 128, 3), 60 * key, np.uint8))
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    given = {"config-file": "config.yaml", "train-json": "a.json", "train-images": "images"}
    given |= {"output": "output"}
    words = [word for key, name in given.items() for word in (f"--{key}", str(tmp_path / name))]

    def run(content, *arguments):
        (tmp_path / "a.json").write_text(json.dumps(content))
        code = check_dataset.main([*words, "--workers", "0", *arguments])
        file = output / "report.json"
        datasets = json.loads(file.read_text())["datasets"] if file.is_file() else []
        return code, {found["dataset"]: found for found in datasets}.get("custom_train")

    run.images, run.output = images, output
    return run


def test_a_good_data_set(check, capsys):
    code, report = check(good_content())
    assert code == 0
    counts = {"images": 3, "annotations": 3, "crowds": 1, "objects": 2, "images_without_objects": 1}
    assert {key: report[f"num_{key}"] for key in counts} == counts
    assert report["problems"]["error"] == report["problems"]["skipped"] == {}
    assert list(report["problems"]["notice"]) == ["many crowds"]
    assert not any(report["lost_objects"].values())
    assert (report["fits"], report["lost_share"]) == (True, 0)
    assert "larger_images" not in report
    assert cv2.imread(str(check.output / "custom_train.jpg")).shape[0] > 320
    printed = capsys.readouterr().out
    assert "All 2 objects of 3 images are assigned to cells." in printed
    assert "Training would work." in printed


def spoil(content):
    """Something of each severity and of each source: json, image files, objects, classes.

    All kinds of bad entries: tests/data/test_bad_annotations.py.
    """
    content["images"] += images_of(SIZE, 4, 5, extension="png") + images_of(SIZE[::-1], 6)
    for image, name in zip(content["images"][3:], ("missing", "text", "3"), strict=True):
        image["file_name"] = f"{name}.png"
    parts = rectangle(22, BOX, 3, 1, bbox=[19, 20, 50, 50])
    parts["segmentation"].append([1, 1, 2, 2])
    content["annotations"] += [
        rectangle(10, BOX, 70, 1),
        rectangle(11, BOX, 1, 9),
        rectangle(12, BOX, 1, 1, segmentation=[[5, 5, 9, 9]]),
        rectangle(13, BOX, 1, 1, segmentation=[[5, 5, float("nan"), 9, 9, 9]]),
        rectangle(14, OUTSIDE_BOX, 1, 1),
        rectangle(16, BOX, 1, 1, segmentation={"size": [128, 96], "counts": [12288]}),
        rectangle(20, BOX, 3, 1, bbox=[20, 20, 70, 70]),
        rectangle(21, BOX, 3, 1, bbox=[20, 20, 70, 70]),
        parts,
        rectangle(23, BOX, 3, 1, bbox=[100, 5, 20, 20]),
        rectangle(24, (40, 40, 140, 140), 3, 1),
    ]
    content["categories"] += [{"id": 2, "name": "cow"}, {"id": 4, "name": "cat"}]


EXPECTED = {
    "error": {
        "image file missing": ["image 4"],
        "image cannot be used": ["image 6"],
        "unknown category": ["annotation 11"],
        "RLE of another size": ["annotation 16"],
        "category id used more than once": ["category 2"],
        "classes do not fit": ["custom_train"],
    },
    "skipped": {
        "annotation of an unknown image": ["annotation 10"],
        "image file cannot be read": ["image 5"],
        "covers nothing": ["annotation 12", "annotation 13"],
        "part that covers nothing": ["annotation 22"],
        "outside the image": ["annotation 14"],
    },
    "notice": {
        "annotated more than once": ["annotation 21"],
        "box does not fit its mask": ["annotation 23"],
        "category name used more than once": ["category 'cat'"],
        "classes without annotations": ["'categories'"],
        "image file used more than once": ["image 6"],
        "many crowds": ["data set 'custom_train'"],
        "reaches beyond the image": ["annotation 24"],
    },
}


def test_everything_that_is_wrong_is_listed(check, capsys):
    content = good_content()
    spoil(content)
    (check.images / "text.png").write_text("<html>404</html>")
    code, report = check(content)
    assert code == 1
    found = {
        severity: {kind: [each["where"] for each in examples] for kind, examples in kinds.items()}
        for severity, kinds in report["problems"].items()
    }
    assert found == EXPECTED
    assert report["training_fails"] is True
    assert report["lost_objects"][OUTCOMES[OUTSIDE]] == ["annotation 14"]
    printed = capsys.readouterr().out
    assert "2 x covers nothing" in printed
    assert "annotation 16: the RLE's 'size' is [128, 96]" in printed
    assert "Training would fail." in printed


def test_test_images_that_are_training_images_are_counted(check, tmp_path, capsys):
    val = ("--val-json", str(tmp_path / "a.json"), "--val-images", str(check.images))
    assert check(good_content(), "--json-only", *val)[0] == 0
    printed = capsys.readouterr().out
    assert "test images that are training images too" in printed
    assert "data set 'custom_val': 3 of 3: " in printed


def test_an_output_that_cannot_be_written_is_known_before_the_check(check, tmp_path, capsys):
    assert check(good_content(), "--output", str(tmp_path / "a.json"))[0] == 2
    assert "a.json" in capsys.readouterr().err


def test_names_that_no_font_has(check):
    content = good_content()
    content["categories"][0]["name"] = "猫 \U0001f408\n"
    content["categories"][1]["name"] = "a" * 5000
    content["annotations"].pop(1)
    code, report = check(content)
    assert code == 0
    (notice,) = report["problems"]["notice"]["classes without annotations"]
    assert len(notice["reason"]) < 300
    assert (check.output / "custom_train.jpg").is_file()


@pytest.mark.parametrize("arguments", [("--json-only",), ("--objects", "0")])
def test_objects_that_are_not_followed(check, arguments):
    (check.images / "2.png").write_text("no image")
    code, report = check(good_content(), *arguments)
    assert code == 0
    assert "num_objects" not in report
    skipped = report["problems"]["skipped"]
    if arguments == ("--json-only",):
        assert skipped == {}
        assert not (check.output / "custom_train.jpg").exists()
    else:  # images are opened all the same
        assert [x["where"] for x in skipped["image file cannot be read"]] == ["image 2"]


def test_workers_find_the_same(check):
    content = good_content()
    content["annotations"].append(rectangle(4, BOX, 3, 1, bbox=[20, 20, 50, 51]))
    content["annotations"].append(rectangle(5, BOX, 3, 1))
    (check.images / "2.png").write_text("no image")
    _, alone = check(content)
    _, together = check(content, "--workers", "2")
    assert alone == together
    assert alone["lost_objects"][OUTCOMES[NO_CELL]] == ["annotation 4"]


def test_more_unreadable_files_than_training_tolerates(check):
    for name in ("2.png", "3.png"):
        (check.images / name).write_text("no image")
    limit = "DATALOADER.MAX_UNREADABLE_IMAGES"
    assert check(good_content(), limit, "2")[0] == 0
    code, report = check(good_content(), limit, "1")
    assert code == 1
    (problem,) = report["problems"]["error"]["too many unreadable image files"]
    assert problem["reason"] == f"2, and {limit} is 1"


def squares(places, side):
    return [rectangle(k, (x, y, x + side, y + side), 1, 1) for k, (x, y) in enumerate(places, 1)]


def dense_content():
    """An image with many small squares."""
    places = np.random.default_rng(0).integers(0, [60, 44], (50, 2)).tolist()
    return good_content(annotations=squares(places, 4))


@pytest.mark.parametrize("sides", ["(96,)", "(0,)"], ids=["resized", "not resized"])
def test_a_config_that_loses_objects_does_not_fit_and_proposals_hold_what_they_say(
    check, capsys, sides
):
    size = ("INPUT.MIN_SIZE_TRAIN", sides)
    code, report = check(dense_content(), *size)
    assert code == 0
    assert report["fits"] is False
    assert report["lost_share"] > 0.4
    lost = report["lost_objects"]
    assert sum(map(len, lost.values())) == pytest.approx(50 * report["lost_share"])
    assert len(lost[OUTCOMES[NO_CELL]]) > len(lost[OUTCOMES[NO_MASK]]) > 0
    assert "Training would run, but" in capsys.readouterr().out
    proposal, larger = report["proposal"], report["larger_images"]
    assert larger["lost_share"] < proposal["lost_share"] < report["lost_share"]
    assert larger["num_images"] == 1

    def levels(values):
        keys = ("NUM_GRIDS", "SCALE_RANGES")
        return [part for key in keys for part in (f"MODEL.SOLO.{key}", str(values[key]))]

    _, with_proposal = check(dense_content(), *size, *levels(proposal))
    assert with_proposal["lost_share"] == pytest.approx(proposal["lost_share"])
    inputs = [str(part) for key in larger if "INPUT" in key for part in (key, larger[key])]
    inputs = [part.replace("[", "(").replace("]", ",)") for part in inputs]
    _, with_larger = check(dense_content(), *inputs, *levels(larger))
    assert with_larger["lost_share"] == pytest.approx(larger["lost_share"])


def test_other_training_sizes_are_looked_at(check):
    content = good_content()
    content["annotations"].append(rectangle(4, (5, 5, 15, 15), 1, 1))
    _, report = check(content, "INPUT.MIN_SIZE_TRAIN", "(8, 96, 96)")
    assert report["lost_share"] == 0
    assert report["lost_share_at_short_sides"] == {"8": 1.0}
    assert report["fits"] is False


def test_objects_are_followed_through_crops(check):
    corners = good_content(annotations=squares([(1, 1), (117, 1), (1, 85), (117, 85)], 10))
    crop = ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute")
    _, report = check(corners, *crop, "INPUT.CROP.SIZE", "[60, 60]")
    assert report["num_objects"] < 4  # some are not in the crop
    assert not report["lost_objects"][OUTCOMES[VANISHED]]


BOXES = [rectangle(key, BOX, key, key, segmentation=[[]] * (key - 1)) for key in (1, 2)]
CROWDS = [rectangle(1, BOX, 1, 1, iscrowd=1), good_content()["annotations"][2]]
# Annotations, the kind of problem, and what is said, also by the training.
NOTHING = {
    "no annotation": ([], "no objects", "none of the 3 images has an annotation"),
    "boxes alone": (BOXES, "no objects", "boxes but no masks"),
    "crowds alone": (CROWDS, "no objects", "only crowd regions"),
    "outside": ([rectangle(1, OUTSIDE_BOX, 1, 1)], "no object is assigned to a cell", ""),
}


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_train_on(check, case, filtered):
    annotations, kind, reason = NOTHING[case]
    key = "DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    code, report = check(good_content(annotations=annotations), key, str(filtered))
    assert code == 1
    (problem,) = report["problems"]["error"][kind]
    assert (reason or "lies outside the image") in problem["reason"]
    # Training refuses it too.
    cfg = tiny_config()
    cfg.merge_from_list([key, filtered, "MODEL.SOLO.NUM_CLASSES", 2, "DATALOADER.NUM_WORKERS", 0])
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = ("custom_train",), str(check.output)
    with pytest.raises(DatasetError, match=reason or "no object is assigned"):
        Trainer(cfg)


def test_objects_of_one_of_several_training_sets_are_enough(check, tmp_path):
    file = tmp_path / "background.json"
    file.write_text(json.dumps(good_content(annotations=[])))
    register_coco_format("test_background", file, check.images)
    arguments = ("--dataset", "test_background", "DATASETS.TRAIN", "('custom_train',)")
    assert check(good_content(), *arguments)[0] == 0


@pytest.mark.parametrize(
    ("crowds", "category", "noticed"), [(5, 0, False), (6, 0, True), (5, 1, True), (0, 0, False)]
)
def test_few_crowds_as_in_coco_are_no_notice(crowds, category, noticed):
    annotations = [{"id": key, "category_id": 0} for key in range(100)]
    for annotation in annotations[100 - crowds :]:
        annotation |= {"category_id": category, "iscrowd": 1}
    records = [{"file_name": "a.png", "image_id": 1, "annotations": annotations}]
    problems = find_ignored("a", records, ["cat", "dog"])
    assert bool(problems) == noticed
    assert all(f"{crowds} of 1" in problem.reason for problem in problems)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "coco_2017_trian"], "'coco_2017_trian' is not registered"),
        (["MODEL.SOLO.NUM_GRID", "3"], "Non-existent key: MODEL.SOLO.NUM_GRID"),
        (["MODEL.SOLO.NUM_GRIDS", "[3]"], "NUM_GRIDS"),
    ],
)
def test_what_cannot_be_checked_is_one_line(check, capsys, arguments, message):
    code, _ = check(good_content(), *arguments)
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("check_dataset: ")
    assert message in line


def test_a_data_set_of_dicts_is_checked_entry_by_entry(check):
    square = rectangle(1, BOX, 1, 0)["segmentation"]
    record = {"file_name": str(check.images / "1.png"), "height": 96, "width": 128, "image_id": 1}
    record["annotations"] = [
        {"bbox": [20.0] * 2 + [50.0] * 2, "bbox_mode": 1, "category_id": key, "segmentation": given}
        for key, given in ((0, square), (2, square), (1, 5))
    ]
    DatasetCatalog.register("test_dicts", lambda: [record])
    MetadataCatalog.get("test_dicts").thing_classes = ["cat", "dog"]
    assert check(good_content(), "--dataset", "test_dicts")[0] == 1
    report, other = json.loads((check.output / "report.json").read_text())["datasets"]
    assert (report["dataset"], other["dataset"]) == ("test_dicts", "custom_train")
    assert {kind: len(found) for kind, found in report["problems"]["error"].items()} == {
        "class outside the data set's": 1,
        "annotation cannot be used": 1,
    }
    assert report["num_objects"] == 1
