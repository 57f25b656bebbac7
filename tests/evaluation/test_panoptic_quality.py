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

NAME, NAN = "test_quality", math.nan
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
def test_areas_are_those_of_the_png_which_may_have_a_palette(dataset, tmp_path, area):
    root = dataset(lambda content: content["annotations"][0]["segments_info"][1].update(area=area))
    file = root / "panoptic/1.png"
    Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE).save(file)
    assert Image.open(file).mode == "P"
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
    kinds = ((1, 2, False), (2, 1, False), (3, 0, True), (4, 1, True), (5, 0, True))
    found = [segment(*kind) for kind in kinds]
    return [prediction(first, *found), prediction(second, segment(1, 2, False))]


def test_classes_of_one_name_have_metrics_of_their_own(dataset, tmp_path):
    root = dataset(lambda content: [c.update(name="sky") for c in content["categories"]])
    results = run(build_evaluator(config(tmp_path), NAME), root)
    figures = results["panoptic_seg"]
    per_class = {key: value for key, value in figures.items() if key.startswith("PQ-")}
    assert list(per_class) == ["PQ-sky", "PQ-sky (id 5)", "PQ-sky (id 9)", "PQ-sky (id 21)"]
    assert list(per_class.values()) == pytest.approx([100, NAN, NAN, 100], nan_ok=True)
    assert "sky (id 21)" in format_metrics(figures)
    stuff = {key: value for key, value in results["sem_seg"].items() if key.startswith("IoU-")}
    assert list(stuff) == ["IoU-things", "IoU-sky", "IoU-sky (id 21)"]
    assert list(stuff.values())[1:] == pytest.approx([NAN, 100], nan_ok=True)
    segm = {key: value for key, value in results["segm"].items() if key.startswith("AP-")}
    assert segm == pytest.approx({"AP-sky": 100, "AP-sky (id 5)": NAN}, nan_ok=True)


def test_a_case_computed_by_hand(dataset, tmp_path):
    dataset()
    figures = evaluate(hand_made(), tmp_path)
    sky, cat = 100 * (9 / 12) / (1 + 0.5 + 0.5), 100 * 4 / 6
    expected = {
        **{"PQ-sky": sky, "SQ-sky": 75, "RQ-sky": 50, "PQ-cat": cat, "PQ-dog": NAN},
        "PQ-grass": 0,  # false, so present
        **{"PQ_th": cat, "PQ_st": sky / 2, "PQ": (sky + cat) / 3, "RQ": 50},
    }
    assert {key: figures[key] for key in expected} == pytest.approx(expected, nan_ok=True)


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
    Image.fromarray(files.id_pixels(np.full((5, 6), 8))).save(png)
    with pytest.raises(DatasetError, match=r"2\.png has 5 x 6 pixels"):
        evaluate(hand_made(), tmp_path, keep_predictions=True)
    png.write_bytes(b"no png")
    with pytest.raises(DatasetError, match=r"2\.png cannot be read: Unidentified"):
        evaluate(hand_made(), tmp_path, keep_predictions=True)
    assert contents(tmp_path / "out" / "panoptic") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"panoptic", ".panoptic.lock"}
    png.unlink()
    with pytest.raises(DatasetError, match=r"1 of the 2 panoptic PNGs .* 2\.png"):
        PanopticQualityEvaluator(NAME)


@pytest.mark.parametrize("seed", range(20))
def test_counts_equal_those_of_panopticapi(tmp_path, seed):
    rng = np.random.default_rng(seed)
    # Numbers of segments from 1; 0 is void.
    truth = np.kron(rng.integers(0, 9, (4, 5)), np.ones((6, 6), np.int32))
    found = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 9, truth.shape), truth)
    sides, located, classes = [], [], []
    for name, ids in (("truth", truth), ("found", found)):
        Image.fromarray(files.id_pixels(ids)).save(tmp_path / f"{name}.png")
        keys, areas = (x.tolist() for x in np.unique(ids, return_counts=True))
        segments = [  # of a class at most one crowd region
            {"id": key, "category_id": (key - 1) % 4, "iscrowd": int(key <= seed % 5), "area": area}
            for key, area in zip(keys, areas, strict=True)
            if key
        ]
        for segment in segments if name == "found" else ():
            segment["category_id"] = int(rng.choice([segment["category_id"], 0], p=[0.8, 0.2]))
        sides.append({"image_id": 1, "file_name": f"{name}.png", "segments_info": segments})
        located.append(locate_segments("", ids.astype(np.int32), segments))
        classes.append([segment["category_id"] for segment in segments])
    with contextlib.redirect_stdout(io.StringIO()):
        categories = dict.fromkeys(range(4))
        stat = pq_compute_single_core(0, [sides], str(tmp_path), str(tmp_path), categories)
    crowd = [segment["iscrowd"] for segment in sides[0]["segments_info"]]
    counts = count_segments(located[0], classes[0], crowd, located[1], classes[1], num_classes=4)
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
    root = dataset()
    reduce(root, kind)
    # What is predicted there lies in void and does not count.
    results = run(build_evaluator(config(tmp_path), NAME), root)
    figures = results["panoptic_seg"]
    for key in ("PQ", "SQ", "RQ"):
        assert math.isnan(figures[key + absent])
        assert figures[key + present] == figures[key] == 100
    if kind == 0:
        assert results["segm"]["AP"] == pytest.approx(100)
    reduce(root, 1 - kind)
    figures = evaluate([prediction(np.zeros((4, 6), int))] * 2, tmp_path)
    assert all(math.isnan(value) for value in figures.values())


# --- errors


@pytest.mark.parametrize(
    ("image", "size", "segments", "message"),
    [
        ({"image_id": 3, "file_name": "x.jpg"}, (4, 6), [], r"no annotation of image 3 \(x\.jpg"),
        (ONE, (2, 2), [], r"1\.jpg has 2 x 2 pixels .* says 4 x 6"),
        (ONE, (4, 6), [], "1 of the 2 images .* no prediction: image ids 2"),
        (ONE, (4, 6), [segment(77, 0, True)], "prediction of image 1 has no pixel .* 77"),
    ],
)
def test_predictions_that_do_not_fit_the_json(dataset, image, size, segments, message):
    dataset()
    evaluator = PanopticQualityEvaluator(NAME)
    evaluator.reset()

    def evaluate_one():
        evaluator.process([image], [prediction(np.zeros(size, int), *segments)])
        evaluator.evaluate()

    with pytest.raises(DatasetError, match=message):
        evaluate_one()


# --- all figures in one run


def config(tmp_path):
    cfg = tiny_config()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.META_ARCHITECTURE = "PanopticSOLO"
    return cfg


def instances(*boxes):
    return rectangles((4, 6), *boxes)


def run(evaluator, root, outputs=()):
    """Figures of right outputs, the last of which `outputs` replace."""
    right = truth_of_both()
    stuff = np.where(files.STUFF_MAP == 255, 0, files.STUFF_MAP)
    for output, labels, found in zip(
        right, (stuff, np.full((4, 6), 2)), ([(0, 2, 3, 4)], []), strict=True
    ):
        one_hot = torch.nn.functional.one_hot(torch.tensor(labels), 3)
        output.update(sem_seg=one_hot.permute(2, 0, 1).float(), instances=instances(*found))
    inputs = [{**x, "file_name": str(root / x["file_name"])} for x in (ONE, TWO)]
    evaluator.reset()
    evaluator.process(inputs, [*right[: 2 - len(outputs)], *outputs])
    return evaluator.evaluate()


def test_one_run_gives_masks_boxes_stuff_and_panoptic_quality(dataset, tmp_path):
    root = dataset()
    cfg = config(tmp_path)
    cfg.TEST.KEEP_PANOPTIC_PREDICTIONS = True
    results = run(build_evaluator(cfg, NAME), root)
    main = {"segm": "AP", "bbox": "AP", "sem_seg": "mIoU", "panoptic_seg": "PQ"}
    assert set(results) == set(main)
    assert [results[task][key] for task, key in main.items()] == pytest.approx([100] * 4)
    folder = tmp_path / "run" / "inference" / NAME
    assert {"panoptic", "coco_instances_results.json"} <= {p.name for p in folder.iterdir()}


def test_an_image_that_could_not_be_read_has_no_segment(dataset, tmp_path):
    root = dataset()
    results = run(build_evaluator(config(tmp_path), NAME), root, outputs=[{}])
    # The sky of the second image is missed, and nothing is wrong.
    assert results["panoptic_seg"]["RQ-sky"] == pytest.approx(200 / 3)
    assert results["panoptic_seg"]["SQ-sky"] == results["panoptic_seg"]["RQ-cat"] == 100
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)  # of the pixels that were looked at


def test_a_model_of_instances_alone_is_evaluated_on_them(dataset, tmp_path):
    dataset()
    cfg = config(tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "SOLO"
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    evaluator.process([ONE], [{"instances": instances((0, 2, 3, 4))}])
    assert set(evaluator.evaluate()) == {"segm", "bbox"}
