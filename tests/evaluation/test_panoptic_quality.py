"""Panoptic quality: hand-made cases, panopticapi's own figures, absent groups, broken files."""

import contextlib
import io
import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")
pytest.importorskip("panopticapi")

from detectron2.data import DatasetCatalog  # noqa: E402
from panopticapi.evaluation import pq_compute, pq_compute_single_core  # noqa: E402
from PIL import Image  # noqa: E402

from solo_d2.data import register_panoptic_format  # noqa: E402
from solo_d2.data.panoptic_json import locate_segments  # noqa: E402
from solo_d2.evaluation import build_evaluator  # noqa: E402
from solo_d2.evaluation.panoptic_quality import (  # noqa: E402
    PanopticQualityEvaluator,
    count_segments,
    format_metrics,
)
from solo_d2.utils.errors import DatasetError  # noqa: E402
from tests import panoptic_files as files  # noqa: E402
from tests.evaluation.made_up import rectangles  # noqa: E402
from tests.modeling.tiny import tiny_config  # noqa: E402

NAME = "test_quality"
ONE, TWO = ({"image_id": key, "file_name": f"images/{key}.jpg"} for key in (1, 2))


@pytest.fixture
def dataset(tmp_path):
    """Write and register the data set, with changes of the json: `dataset(change)`."""

    def make(change=None):
        root = files.write(tmp_path / "data", change)
        register_panoptic_format(NAME, root / "panoptic.json", root / "panoptic", root / "images")
        DatasetCatalog.get(NAME)
        return root

    return make


def segment(key, contiguous, isthing):
    # As Detectron2's merge: with more than evaluation needs.
    return {"id": key, "isthing": isthing, "category_id": contiguous, "score": 0.9}


def prediction(ids, *segments):
    return {"panoptic_seg": (torch.tensor(np.asarray(ids), dtype=torch.int32), list(segments))}


def truth_of_both():
    """Predictions equal to the ground truth; of a crowd nothing needs to be found."""
    ids = np.where(files.IDS == files.CROWD, 0, files.IDS)
    return [
        prediction(ids, segment(files.SKY, 2, False), segment(files.CAT, 0, True)),
        prediction(np.full((4, 6), 8), segment(8, 2, False)),
    ]


def evaluate(predictions, tmp_path, **options):
    evaluator = PanopticQualityEvaluator(NAME, str(tmp_path / "out"), **options)
    evaluator.reset()
    evaluator.process([ONE, TWO], predictions)
    return evaluator.evaluate()["panoptic_seg"]


def test_ground_truth_against_itself(dataset, tmp_path):
    dataset()
    predictions = truth_of_both()
    figures = evaluate(predictions, tmp_path)
    for suffix in ("", "_th", "_st"):
        for key in ("PQ", "SQ", "RQ"):
            assert figures[key + suffix] == 100
    assert figures["PQ-cat"] == figures["PQ-sky"] == 100
    assert math.isnan(figures["PQ-dog"])  # a crowd only
    assert math.isnan(figures["PQ-grass"])
    assert all(type(value) is float for value in figures.values())
    # other evaluators still find what the model gave
    assert predictions[0]["panoptic_seg"][1][0] == segment(files.SKY, 2, False)
    assert not (tmp_path / "out" / "panoptic").exists()


@pytest.mark.parametrize("area", [None, -5, 10**30, "12", []])
def test_areas_are_those_of_the_png(dataset, tmp_path, area):
    dataset(lambda content: content["annotations"][0]["segments_info"][1].update(area=area))
    assert evaluate(truth_of_both(), tmp_path)["PQ"] == 100


def hand_made():
    """One of each: a match with an error, a miss, a false one, one in a crowd, one in void."""
    first = [
        [1, 1, 1, 1, 1, 1],  # sky: 9 of 12 pixels, 9 / 12
        [1, 1, 1, 2, 2, 2],  # grass where there is none: false
        [3, 3, 4, 4, 4, 5],  # cat: 4 of 6 pixels; dogs: 1 on the cat and 4 on the crowd, ignored
        [3, 3, 0, 4, 4, 5],  # cat in the void: ignored
    ]
    second = np.ones((4, 6), int)
    second[:, 3:] = 0  # half the sky: not more than half, so missed and false
    return [
        prediction(
            first,
            segment(1, 2, False),
            segment(2, 1, False),
            segment(3, 0, True),
            segment(4, 1, True),
            segment(5, 0, True),
        ),
        prediction(second, segment(1, 2, False)),
    ]


def test_png_with_a_palette_counts_as_one_of_rgb(dataset, tmp_path):
    file = dataset() / "panoptic/1.png"
    Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE).save(file)
    assert Image.open(file).mode == "P"
    assert evaluate(truth_of_both(), tmp_path)["PQ"] == 100


def one_name(content):
    for category in content["categories"]:
        category["name"] = "sky"


def test_classes_of_one_name_have_metrics_of_their_own(dataset, tmp_path):
    root = dataset(one_name)
    results = run(build_evaluator(config(tmp_path), NAME), root)
    figures = results["panoptic_seg"]
    per_class = {key: value for key, value in figures.items() if key.startswith("PQ-")}
    assert list(per_class) == ["PQ-sky", "PQ-sky (id 5)", "PQ-sky (id 9)", "PQ-sky (id 21)"]
    assert per_class["PQ-sky"] == per_class["PQ-sky (id 21)"] == 100
    assert math.isnan(per_class["PQ-sky (id 5)"])
    assert "sky (id 21)" in format_metrics(figures)
    stuff = {key: value for key, value in results["sem_seg"].items() if key.startswith("IoU-")}
    assert list(stuff) == ["IoU-things", "IoU-sky", "IoU-sky (id 21)"]
    assert math.isnan(stuff["IoU-sky"])
    assert stuff["IoU-sky (id 21)"] == pytest.approx(100)
    assert [key for key in results["segm"] if key.startswith("AP-")] == ["AP-sky", "AP-sky (id 5)"]
    assert results["segm"]["AP-sky"] == pytest.approx(100)
    assert math.isnan(results["segm"]["AP-sky (id 5)"])


def test_a_case_computed_by_hand(dataset, tmp_path):
    dataset()
    figures = evaluate(hand_made(), tmp_path)
    sky = (9 / 12) / (1 + 0.5 + 0.5)
    cat = 4 / 6
    assert figures["PQ-sky"] == pytest.approx(100 * sky)
    assert figures["SQ-sky"] == pytest.approx(75)
    assert figures["RQ-sky"] == pytest.approx(50)
    assert figures["PQ-cat"] == pytest.approx(100 * cat)
    assert figures["PQ-grass"] == 0  # false, so present
    assert math.isnan(figures["PQ-dog"])
    assert figures["PQ_th"] == pytest.approx(100 * cat)
    assert figures["PQ_st"] == pytest.approx(100 * sky / 2)
    assert figures["PQ"] == pytest.approx(100 * (sky + cat) / 3)
    assert figures["RQ"] == pytest.approx(50)


def test_kept_predictions_are_read_back_by_panopticapi(dataset, tmp_path, monkeypatch):
    root = dataset()
    for predictions in (truth_of_both(), hand_made()):  # the second replaces the first
        figures = evaluate(predictions, tmp_path, keep_predictions=True)
    folder = tmp_path / "out" / "panoptic"
    assert sorted(path.name for path in folder.iterdir()) == ["predictions", "predictions.json"]
    content = json.loads((folder / "predictions.json").read_text())
    assert content["annotations"][1] == {
        "image_id": 2,
        "file_name": "2.png",
        "segments_info": [{"id": 1, "category_id": 21}],
    }
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 2)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute(
            str(root / "panoptic.json"),
            str(folder / "predictions.json"),
            str(root / "panoptic"),
            str(folder / "predictions"),
        )
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for key in ("PQ", "SQ", "RQ"):
            assert figures[key + suffix] == pytest.approx(100 * theirs[group][key.lower()])
    assert figures["PQ-sky"] == pytest.approx(100 * theirs["per_class"][21]["pq"])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def fail(*_):
    raise OSError("full")


def test_predictions_are_kept_whole_or_not_at_all(dataset, tmp_path, monkeypatch):
    png = dataset() / "panoptic" / "2.png"
    evaluate(truth_of_both(), tmp_path, keep_predictions=True)
    before = contents(tmp_path / "out" / "panoptic")
    assert len(before) == 3

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="full"):
            evaluate(hand_made(), tmp_path, keep_predictions=True)
    png.write_bytes(b"no png")
    with pytest.raises(DatasetError, match=r"2\.png cannot be read"):
        evaluate(hand_made(), tmp_path, keep_predictions=True)
    assert contents(tmp_path / "out" / "panoptic") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"panoptic", ".panoptic.lock"}


@pytest.mark.parametrize("seed", range(20))
def test_counts_equal_those_of_panopticapi(tmp_path, seed):
    rng = np.random.default_rng(seed)
    # Numbers of segments from 1; 0 is void.
    truth = np.kron(rng.integers(0, 9, (4, 5)), np.ones((6, 6), int))
    found = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 9, truth.shape), truth)
    sides = []
    for name, ids in (("truth", truth), ("found", found)):
        Image.fromarray(files.id_pixels(ids)).save(tmp_path / f"{name}.png")
        segments = [  # of a class at most one crowd region
            {"id": key, "category_id": (key - 1) % 4, "iscrowd": int(key <= seed % 5), "area": area}
            for key, area in zip(
                *map(np.ndarray.tolist, np.unique(ids, return_counts=True)), strict=True
            )
            if key
        ]
        if name == "found":
            for segment in segments:
                segment["category_id"] = int(rng.choice([segment["category_id"], 0], p=[0.8, 0.2]))
        sides.append({"image_id": 1, "file_name": f"{name}.png", "segments_info": segments})
    with contextlib.redirect_stdout(io.StringIO()):
        categories = dict.fromkeys(range(4))
        stat = pq_compute_single_core(0, [sides], str(tmp_path), str(tmp_path), categories)
    (truth_ids, predicted_ids), (truth_classes, classes) = (
        [
            locate_segments("", x.astype(np.int32), s["segments_info"])
            for x, s in zip((truth, found), sides, strict=True)
        ],
        [[s["category_id"] for s in side["segments_info"]] for side in sides],
    )
    crowd = [s["iscrowd"] for s in sides[0]["segments_info"]]
    counts = count_segments(truth_ids, truth_classes, crowd, predicted_ids, classes, num_classes=4)
    expected = [[stat[c].iou, stat[c].tp, stat[c].fp, stat[c].fn] for c in range(4)]
    np.testing.assert_allclose(counts, expected, rtol=1e-12)


def reduce(root, kind):
    """Take the segments of things (1) or stuff (0) out of the json and the PNGs."""
    content = json.loads((root / "panoptic.json").read_text())
    kinds = {category["id"]: category["isthing"] for category in content["categories"]}
    for annotation in content["annotations"]:
        segments = annotation["segments_info"]
        segments[:] = [s for s in segments if kinds[s["category_id"]] != kind]
        file = root / "panoptic" / annotation["file_name"]
        ids = np.asarray(Image.open(file)).astype(int) @ [1, 256, 65536]
        listed = np.isin(ids, [s["id"] for s in segments])
        Image.fromarray(files.id_pixels(np.where(listed, ids, 0))).save(file)
    (root / "panoptic.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("kind", "absent", "present"), [(1, "_th", "_st"), (0, "_st", "_th")])
def test_a_group_without_a_class_is_nan(dataset, tmp_path, kind, absent, present):
    reduce(dataset(), kind)
    predictions = truth_of_both()
    for ids, segments in (output["panoptic_seg"] for output in predictions):
        for s in [s for s in segments if s["isthing"] == bool(kind)]:
            segments.remove(s)
            ids[ids == s["id"]] = 0
    figures = evaluate(predictions, tmp_path)
    for key in ("PQ", "SQ", "RQ"):
        assert math.isnan(figures[key + absent])
        assert figures[key + present] == figures[key] == 100


def test_nothing_at_all_is_nan(dataset, tmp_path):
    root = dataset()
    reduce(root, 1)
    reduce(root, 0)
    figures = evaluate([prediction(np.zeros((4, 6), int))] * 2, tmp_path)
    assert all(math.isnan(value) for value in figures.values())


# --- errors


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        ({"image_id": 3, "file_name": "x.jpg"}, (4, 6), r"no annotation of image 3 \(x\.jpg"),
        (ONE, (2, 2), r"1\.jpg has 2 x 2 pixels .* says 4 x 6"),
        (ONE, (4, 6), "1 of the 2 images .* no prediction: image ids 2"),
    ],
)
def test_images_that_do_not_fit_the_json(dataset, image, size, message):
    dataset()
    evaluator = PanopticQualityEvaluator(NAME)
    evaluator.reset()

    def evaluate_one():
        evaluator.process([image], [prediction(np.zeros(size, int))])
        evaluator.evaluate()

    with pytest.raises(DatasetError, match=message):
        evaluate_one()


def test_missing_and_damaged_pngs_of_the_ground_truth(dataset, tmp_path):
    file = dataset() / "panoptic" / "2.png"
    Image.fromarray(files.id_pixels(np.full((5, 6), 8))).save(file)
    with pytest.raises(DatasetError, match=r"2\.png has 5 x 6 pixels"):
        evaluate(truth_of_both(), tmp_path)
    file.write_bytes(b"no png")
    with pytest.raises(DatasetError, match=r"2\.png cannot be read: Unidentified"):
        evaluate(truth_of_both(), tmp_path)
    file.unlink()
    with pytest.raises(DatasetError, match=r"1 of the 2 panoptic PNGs .* 2\.png"):
        PanopticQualityEvaluator(NAME)


def test_a_segment_that_is_not_in_the_prediction(dataset, tmp_path):
    dataset()
    predictions = truth_of_both()
    predictions[0]["panoptic_seg"][1].append(segment(77, 0, True))
    with pytest.raises(DatasetError, match="prediction of image 1 has no pixel .* 77"):
        evaluate(predictions, tmp_path)


# --- all figures in one run


def config(tmp_path):
    cfg = tiny_config()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.META_ARCHITECTURE = "PanopticSOLO"
    return cfg


def instances(*boxes):
    return rectangles((4, 6), *boxes)


def run(evaluator, root):
    outputs = truth_of_both()
    stuff = np.where(files.STUFF_MAP == 255, 0, files.STUFF_MAP)
    for output, labels, found in zip(
        outputs, (stuff, np.full((4, 6), 2)), ([(0, 2, 3, 4)], []), strict=True
    ):
        one_hot = torch.nn.functional.one_hot(torch.tensor(labels), 3)
        output.update(sem_seg=one_hot.permute(2, 0, 1).float(), instances=instances(*found))
    inputs = [{**x, "file_name": str(root / x["file_name"])} for x in (ONE, TWO)]
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def test_one_run_gives_masks_boxes_stuff_and_panoptic_quality(dataset, tmp_path):
    root = dataset()
    cfg = config(tmp_path)
    cfg.TEST.KEEP_PANOPTIC_PREDICTIONS = True
    results = run(build_evaluator(cfg, NAME), root)
    assert set(results) == {"segm", "bbox", "sem_seg", "panoptic_seg"}
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["panoptic_seg"]["PQ"] == 100
    folder = tmp_path / "run" / "inference" / NAME
    assert {"panoptic", "coco_instances_results.json"} <= {p.name for p in folder.iterdir()}


def test_an_image_that_could_not_be_read_has_no_segment(dataset, tmp_path):
    root = dataset()
    outputs, evaluator = truth_of_both(), build_evaluator(config(tmp_path), NAME)
    stuff = torch.tensor(np.where(files.STUFF_MAP == 255, 0, files.STUFF_MAP))
    outputs[0]["sem_seg"] = torch.nn.functional.one_hot(stuff, 3).permute(2, 0, 1).float()
    outputs[0]["instances"] = instances((0, 2, 3, 4))
    evaluator.reset()
    inputs = [{**x, "file_name": str(root / x["file_name"])} for x in (ONE, TWO)]
    evaluator.process(inputs, [outputs[0], {}])
    results = evaluator.evaluate()
    # The sky of the second image is missed, and nothing is wrong.
    assert results["panoptic_seg"]["RQ-sky"] == pytest.approx(200 / 3)
    assert results["panoptic_seg"]["SQ-sky"] == 100
    assert results["panoptic_seg"]["RQ-cat"] == 100
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)  # of the pixels that were looked at


def test_an_absent_group_costs_no_other_figure(dataset, tmp_path):
    root = dataset()
    reduce(root, 0)
    results = run(build_evaluator(config(tmp_path), NAME), root)
    assert results["segm"]["AP"] == pytest.approx(100)
    # No stuff in the ground truth, so what was predicted there lies in void and does not count.
    assert math.isnan(results["panoptic_seg"]["PQ_st"])
    assert results["panoptic_seg"]["PQ_th"] == 100


def test_a_model_of_instances_alone_is_evaluated_on_them(dataset, tmp_path):
    dataset()
    cfg = config(tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    evaluator.process([ONE], [{"instances": instances((0, 2, 3, 4))}])
    assert set(evaluator.evaluate()) == {"segm", "bbox"}


def test_standard_panoptic_data_sets_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="name 'coco_2017_val_panoptic_separated'"):
        build_evaluator(config(tmp_path), "coco_2017_val_panoptic")
