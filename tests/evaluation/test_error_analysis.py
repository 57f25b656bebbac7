"""Errors of predictions made by hand: each correction mends what it names and nothing else."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask

from solo_d2.data.coco_format import register_coco_format
from solo_d2.evaluation import build_evaluator
from solo_d2.evaluation.average_precision import index_coco
from solo_d2.evaluation.error_analysis import (
    CLASSES,
    CORRECTIONS,
    DUPLICATES,
    MASKS,
    analyze_errors,
    correct,
    format_table,
    load_ground_truth,
    mask_ap,
    match_predictions,
    read_predictions,
    to_json,
)
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.evaluation.made_up import images_of, masks_of, rectangle
from tests.modeling.tiny import NUM_CLASSES, tiny_config, tiny_model
from tests.pictures import picture, save
from tools import analyze_errors as command

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = 40, 60
CAT, DOG = 2, 7
# XYXY, apart from each other.
A, B, C = (2, 2, 22, 12), (2, 20, 22, 35), (30, 2, 55, 30)
# Half of A: IoU 0.5 with it.
HALF_A = (2, 2, 12, 12)


def rle(box):
    (mask,) = masks_of((HEIGHT, WIDTH), box).numpy()
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def annotation(key, box, category=CAT, image=3, crowd=0):
    changes = {"segmentation": as_json(prediction(box))[0]["segmentation"]} if crowd else {}
    return rectangle(key, box, image, category, iscrowd=crowd, **changes)


def content(*annotations):
    images = images_of((HEIGHT, WIDTH), 3, 5, extension="png")
    categories = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]
    return {"images": images, "annotations": list(annotations), "categories": categories}


def truth(*annotations):
    return index_coco(content(*annotations))


def prediction(box, score=0.9, category=CAT, image=3):
    place = {"image_id": image, "category_id": category}
    return {**place, "score": score, "segmentation": rle(box)}


def as_json(*predictions):
    predictions = copy.deepcopy(predictions)
    for each in predictions:
        each["segmentation"]["counts"] = each["segmentation"]["counts"].decode()
    return list(predictions)


def ap(ground_truth, *predictions, **options):
    rows = analyze_errors(ground_truth, predictions, **options)["rows"]
    return {name: row["AP"] for name, row in rows.items()}


TWO = annotation(1, A), annotation(2, B)
# Of two objects one is found: precision 1 up to recall 0.5, which is 51 of the 101 recalls.
HALF = 100 * 51 / 101
CASES = {
    # IoU 0.5 passes the first of ten thresholds.
    "poor mask": ([TWO[0]], [prediction(HALF_A)], 10, {MASKS: 100}),
    "wrong classes": (
        [annotation(1, A), annotation(2, B, DOG)],
        [prediction(A, category=DOG), prediction(B, category=CAT)],
        0,
        {CLASSES: 100},
    ),
    # Precision 1 up to half of the objects, then 2/3.
    "duplicate": (
        TWO,
        [prediction(A, 0.9), prediction(A, 0.8), prediction(B, 0.7)],
        100 * (51 + 50 * 2 / 3) / 101,
        {DUPLICATES: 100},
    ),
    "missed object": (TWO, [prediction(A)], HALF, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_corrected_by_its_correction_alone(case):
    objects, predictions, before, after = CASES[case]
    for name, value in ap(truth(*objects), *predictions).items():
        ways = [after[key] for key in after if key in CORRECTIONS[name]]
        assert value == pytest.approx(ways[0] if ways else before), name


def test_background_stays_as_it_is():
    analysis = analyze_errors(truth(annotation(1, A)), [prediction(C, 0.95), prediction(A, 0.9)])
    assert analysis["num_unmatched"] == 1
    found = [row["AP"] for row in analysis["rows"].values()]
    assert found == pytest.approx([50] * len(CORRECTIONS))


def test_match_is_the_largest_iou_of_any_class_in_the_same_image():
    ground_truth = truth(
        annotation(1, (2, 2, 18, 12)), annotation(2, HALF_A, DOG), annotation(3, A, image=5)
    )
    matches = match_predictions(ground_truth, [prediction(HALF_A), prediction(A, image=5)])
    assert [match["id"] for match in matches] == [2, 3]
    equal = truth(annotation(4, A), annotation(2, A))
    assert match_predictions(equal, [prediction(HALF_A)])[0]["id"] == 4  # the first


def test_crowd_is_never_taken():
    ground_truth = truth(annotation(1, A, crowd=1), annotation(2, HALF_A))
    first, second = match_predictions(ground_truth, [prediction(A), prediction(A, image=5)])
    assert (first["id"], second) == (2, None)
    only_crowd = truth(annotation(1, A, crowd=1))
    assert match_predictions(only_crowd, [prediction(A)]) == [None]
    assert analyze_errors(ground_truth, [prediction(A)])["num_objects"] == 1


def test_duplicates_are_counted_by_class_and_the_best_score_stays():
    ground_truth = truth(annotation(1, A))
    predictions = [
        prediction(A, 0.5),
        prediction(HALF_A, 0.9),
        prediction(A, 0.9),  # as good, but later
        prediction(A, 0.4, DOG),
        prediction(C, 0.3),
        prediction(C, 0.2),
    ]
    matches = match_predictions(ground_truth, predictions)
    alone = correct(predictions, matches, [DUPLICATES])
    assert alone == [predictions[index] for index in (1, 3, 4, 5)]
    classes = correct(predictions, matches, [CLASSES, DUPLICATES])
    assert [p["score"] for p in classes] == [0.9, 0.3, 0.2]
    assert predictions[3]["category_id"] == DOG  # not changed


def test_no_predictions_and_images_without_objects():
    analysis = analyze_errors(truth(annotation(1, A)), [])
    assert all(math.isnan(row["AP"]) for row in analysis["rows"].values())
    assert to_json(analysis)["rows"]["true masks"]["AP"] is None
    assert match_predictions(truth(), [prediction(A)]) == [None]


def test_table_has_a_line_for_each_correction_and_the_gain():
    analysis = analyze_errors(truth(annotation(1, A)), [prediction(HALF_A)])
    lines = format_table(analysis).splitlines()
    assert lines[0] == "2 images, 1 objects, 1 predictions, of which 0 overlap none"
    assert lines[2].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl", "gain"]
    assert [line.split("  ")[0] for line in lines[3:]] == list(CORRECTIONS)
    assert lines[3].split()[-7:] == ["10.0", "100.0", "0.0", "10.0", "-", "-", "+0.0"]
    assert lines[4].split()[-1] == "+90.0"


# ---------------------------------------------------------------- files and the command line


@pytest.fixture
def dataset(tmp_path):
    """The config of a tiny model and a registered data set of two images."""
    annotations = content(annotation(1, A), annotation(2, B, DOG), annotation(3, C, DOG, image=5))
    annotations["categories"] += [{"id": 10 + i, "name": f"{i}"} for i in range(NUM_CLASSES - 2)]
    for key in (3, 5):
        save(tmp_path / f"images/{key}.png", picture(HEIGHT, WIDTH))
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    entry = ["errors_val", *(str(tmp_path / name) for name in ("annotations.json", "images"))]
    cfg = tiny_config()
    cfg.DATASETS.COCO_FORMAT = [entry]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("errors_val",)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.INPUT.MIN_SIZE_TEST, cfg.DATALOADER.NUM_WORKERS = 0, 0
    cfg.MODEL.SOLO.HEAD.PRIOR_PROB = 0.7
    register_coco_format(*entry)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return cfg


@pytest.fixture
def found(tmp_path):
    """Write predictions or text: `found(*predictions)`; the file."""

    def write(*predictions):
        file = tmp_path / "found.json"
        text = predictions[0] if isinstance(predictions[0], str) else json.dumps(predictions)
        file.write_text(text)
        return file

    return write


def test_as_predicted_is_what_the_evaluator_says(dataset, found, tmp_path):
    predictions = prediction(HALF_A, 0.8), prediction(A, 0.6), prediction(C, 0.7, DOG, 5)
    file = found(*as_json(*predictions))
    ground_truth = load_ground_truth(dataset, "errors_val")
    evaluator = build_evaluator(dataset, "errors_val", str(tmp_path / "evaluation"))
    evaluator.reset()
    contiguous = MetadataCatalog.get("errors_val").thing_dataset_id_to_contiguous_id
    for entry in json.loads(file.read_text()):
        entry["category_id"] = contiguous[entry["category_id"]]
        entry["bbox"] = coco_mask.toBbox(entry["segmentation"]).tolist()
        evaluator._predictions.append({"image_id": entry["image_id"], "instances": [entry]})
    wanted = evaluator.evaluate()["segm"]
    figures = mask_ap(ground_truth, read_predictions(file, ground_truth))
    assert 0 < figures["AP"] < 100
    assert figures == pytest.approx({key: wanted[key] for key in figures}, nan_ok=True)


def test_polygons_are_predictions_too(dataset, found):
    place = {"image_id": 3, "category_id": CAT, "score": 1}
    file = found({**place, "segmentation": annotation(1, A)["segmentation"]})
    ground_truth = load_ground_truth(dataset, "errors_val")
    assert read_predictions(file, ground_truth) == [prediction(A, 1)]


UNFIT = [
    ({"image_id": 4}, "prediction 1: .*image_id 4 is not in the annotations"),
    ({"category_id": 0}, "prediction 1: .*category_id 0 is not in the annotations"),
    ({"score": None}, "prediction 1: .*score is None"),
    ({"segmentation": {"size": [9, 9], "counts": "Q1"}}, r"prediction 1: .*'size' is \[9, 9\], th"),
    ({"segmentation": None}, "segmentation"),
    ("[5]", "image_id"),
    ("{}", "no list of predictions"),
    ("[", "cannot be read"),
]


@pytest.mark.parametrize(("change", "reason"), UNFIT)
def test_unfit_predictions_are_named(dataset, found, change, reason):
    ground_truth = load_ground_truth(dataset, "errors_val")
    good, bad = as_json(prediction(A), prediction(B))
    file = found(change) if isinstance(change, str) else found(good, {**bad, **change})
    with pytest.raises(DatasetError, match=rf"found\.json.*{reason}"):
        read_predictions(file, ground_truth)


def test_other_rules_and_models_of_contours_are_refused(dataset, monkeypatch):
    dataset.MODEL.SOLO.MASK_TARGET = "contour"
    with pytest.raises(ConfigError, match="MASK_TARGET is 'contour'"):
        load_ground_truth(dataset, "errors_val")
    dataset.MODEL.SOLO.MASK_TARGET = "mask"
    monkeypatch.setattr("solo_d2.evaluation.error_analysis.build_evaluator", lambda *args: object())
    with pytest.raises(ConfigError, match="'errors_val' has evaluator_type 'coco', but"):
        load_ground_truth(dataset, "errors_val")


def run(tmp_path, *args):
    return command.main(["--config-file", str(tmp_path / "config.yaml"), *map(str, args)])


def test_command_on_predictions(dataset, found, tmp_path, capsys):
    file = found(*as_json(prediction(HALF_A), prediction(B, category=DOG)))
    assert run(tmp_path, "--predictions", file, "--output", tmp_path / "out") == 0
    assert "errors_val: 2 images, 3 objects, 2 predictions" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out/errors.json").read_text())
    assert saved["dataset"] == "errors_val"
    assert saved["rows"]["true masks"]["AP"] == pytest.approx((100 + 100 * 51 / 101) / 2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["errors.json"]


def test_command_with_a_model(dataset, tmp_path, capsys):
    torch.save({"model": tiny_model(dataset).state_dict()}, tmp_path / "model.pth")
    args = ("--weights", tmp_path / "model.pth", "--device", "cpu", "--output", tmp_path / "out")
    assert run(tmp_path, *args) == 0
    saved = json.loads((tmp_path / "out/errors.json").read_text())
    file = tmp_path / "out/coco_instances_results.json"
    num = saved["num_predictions"]
    assert num == len(json.loads(file.read_text())) > 0
    assert "true masks and classes" in capsys.readouterr().out
    assert run(tmp_path, "--predictions", file) == 0
    assert f"{num} predictions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--predictions", "nowhere.json"), "nowhere.json cannot be read"),
        (("--predictions", "x", "--dataset", "errors_vla"), "Close names: errors_val"),
        (
            ("--predictions", "x", "--opts", "DATASETS.TEST", "()"),
            "DATASETS.TEST is empty: add --dataset",
        ),
        (("--weights", "nowhere.pth"), "nowhere.pth does not exist"),
    ],
)
def test_command_names_what_is_wrong(dataset, tmp_path, capsys, args, reason):
    assert run(tmp_path, *args) == 2
    assert reason in capsys.readouterr().err
