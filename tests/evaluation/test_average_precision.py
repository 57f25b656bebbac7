"""AP by any evaluator equals that of pycocotools and Detectron2, and LVIS's that of its rules."""

import copy
import json
import math
import sys
import types

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.evaluation import COCOEvaluator
from pycocotools.cocoeval import COCOeval

from solo_d2.config import default_config
from solo_d2.data import check_datasets
from solo_d2.engine import Trainer
from solo_d2.evaluation import build_evaluator
from solo_d2.evaluation.average_precision import (
    BACKENDS,
    category_curves,
    group,
    index_coco,
    join_curves,
    load_backend,
    usable_annotations,
)
from solo_d2.evaluation.coco_results import FastCOCOEvaluator, coco_summary
from solo_d2.evaluation.lvis_results import FastLVISEvaluator, best_of_images
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.evaluation.made_up import (
    AP_BACKENDS,
    CATEGORIES,
    UNSEEN,
    coco_truth,
    lvis_truth,
    predictions,
    register_json,
)
from tests.json_damage import HEIGHT, WIDTH, lvis_content
from tests.modeling.tiny import tiny_config, tiny_model
from tests.pictures import picture, save
from tests.reference.lvis import lvis_figures

pytestmark = pytest.mark.detectron2

LIMITS = (1, 10, 100)


@pytest.fixture(scope="module")
def truth():
    return coco_truth()


@pytest.fixture(scope="module")
def results(truth):
    return predictions(truth)


def by_pycocotools(truth, results, task):
    """Its own way: all categories at once."""
    results = copy.deepcopy(results)
    if task == "segm":
        for result in results:
            del result["bbox"]  # its area would be taken for that of the mask
    coco = index_coco(copy.deepcopy(truth))
    evaluation = COCOeval(coco, coco.loadRes(results), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def ours(truth, results, task, backend):
    evaluator = load_backend(backend)[1]
    images = {image["id"]: image for image in truth["images"]}
    objects = group(usable_annotations(truth["annotations"], images, CATEGORIES), "category_id")
    predicted = group(results, "category_id")
    curves = {
        key: category_curves(
            *(evaluator, objects[key], predicted.get(key, []), images.__getitem__),
            iou_type=task,
            max_predictions=LIMITS,
        )
        for key in objects
    }
    return join_curves(curves, CATEGORIES, len(LIMITS))


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("backend", AP_BACKENDS)
def test_equals_pycocotools(truth, results, backend, task):
    expected = by_pycocotools(truth, results, task)
    precision, recall = ours(truth, results, task, backend)
    np.testing.assert_allclose(precision, expected.eval["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(recall, expected.eval["recall"], rtol=0, atol=1e-9)
    summary, table = coco_summary((precision, recall), LIMITS)
    np.testing.assert_allclose(summary.stats, expected.stats, rtol=0, atol=1e-9)
    assert "maxDets=100" in table
    # The case is not an easy one: areas, limits and classes all matter.
    assert len(set(np.round(expected.stats, 6))) == 12
    assert set(precision[..., CATEGORIES.index(UNSEEN), :, :].ravel()) == {-1}


@pytest.fixture
def register(tmp_path):
    def register(name, content, kind="coco"):
        if kind == "coco":
            register_json(tmp_path, name, content)
            DatasetCatalog.get(name)
            return name
        json_file = tmp_path / f"{name}.json"
        json_file.write_text(json.dumps(content))
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            evaluator_type="lvis",
            json_file=str(json_file),
            thing_dataset_id_to_contiguous_id={key: i for i, key in enumerate(CATEGORIES)},
        )
        return name

    return register


def evaluate(evaluator, results):
    """Figures of results, whose categories are turned into classes as a model gives them."""
    evaluator.reset()
    for result in copy.deepcopy(results):
        result["category_id"] = CATEGORIES.index(result["category_id"])
        entry = {"image_id": result["image_id"], "instances": [result]}
        evaluator._predictions.append(entry)
    return evaluator.evaluate()


def assert_figures(found, expected, tolerance=1e-9):
    assert list(found) == list(expected)
    for task, figures in expected.items():
        assert found[task] == pytest.approx(figures, rel=0, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("backend", ["auto", *AP_BACKENDS])
def test_evaluator_equals_that_of_detectron2(truth, results, register, tmp_path, backend):
    name = register("ap_same", truth)
    evaluator = FastCOCOEvaluator(name, str(tmp_path / "out"), backend=backend)
    plain = COCOEvaluator(name, ("bbox", "segm"), use_fast_impl=False)
    expected = evaluate(plain, results)
    assert {f"AP-class {key}" for key in CATEGORIES} <= set(expected["segm"])
    assert_figures(evaluate(evaluator, results), expected)
    assert json.loads((tmp_path / "out/coco_instances_results.json").read_text()) == results


def test_more_predictions_than_those_of_coco_count(truth, results, register):
    name = register("ap_many", truth)
    evaluator = FastCOCOEvaluator(name, None, max_predictions=(1, 10, 250))
    plain = COCOEvaluator(name, ("bbox", "segm"), use_fast_impl=False, max_dets_per_image=250)
    found = evaluate(evaluator, results)
    assert_figures(found, evaluate(plain, results))
    assert found["segm"]["AP"] != evaluate(FastCOCOEvaluator(name, None), results)["segm"]["AP"]


def test_ids_of_annotations_and_images_do_not_matter(truth, results, register):
    other, others = copy.deepcopy(truth), copy.deepcopy(results)
    for item in (*other["annotations"], *others):
        item["image_id"] = f"image {item['image_id']:03}"
    for image in other["images"]:
        image["id"] = f"image {image['id']:03}"
    for number, annotation in enumerate(other["annotations"]):
        annotation["id"] = number  # from 0, which evaluators take for "not matched"
    found = evaluate(FastCOCOEvaluator(register("ap_ids", other), None), others)
    assert_figures(found, evaluate(FastCOCOEvaluator(register("ap_plain", truth), None), results))


def test_without_predictions_figures_are_nan(truth, register):
    figures = evaluate(FastCOCOEvaluator(register("ap_none", truth), None), [])
    assert all(math.isnan(value) for part in figures.values() for value in part.values())


def test_class_or_image_that_the_data_set_lacks(truth, results, register):
    evaluator = FastCOCOEvaluator(register("ap_wrong", truth), None)
    evaluator.reset()
    evaluator._predictions = [{"image_id": 1, "instances": [{**results[0], "category_id": 6}]}]
    with pytest.raises(ConfigError, match="class 6 .* has 6 classes: MODEL.SOLO.NUM_CLASSES"):
        evaluator.evaluate()
    with pytest.raises(DatasetError, match="image 99, which is not in the annotation file"):
        evaluate(evaluator, [{**results[0], "image_id": 99}])


def test_first_installed_backend_is_taken(monkeypatch):
    order = list(BACKENDS)
    assert order == ["detectron2", "faster-coco-eval", "pycocotools"]
    installed = {BACKENDS[name][0]: types.ModuleType(name) for name in order}
    for name in order:
        module, attribute = BACKENDS[name]
        setattr(installed[module], attribute, dict)
        monkeypatch.setitem(sys.modules, module, installed[module])
    for name in order:
        assert load_backend("auto")[0] == name
        monkeypatch.setitem(sys.modules, BACKENDS[name][0], None)  # as if not built
        with pytest.raises(ConfigError, match=f"TEST.AP_BACKEND is '{name}'.* install it"):
            load_backend(name)
    with pytest.raises(ConfigError, match="TEST.AP_BACKEND is 'fast'.* pycocotools"):
        load_backend("fast")


@pytest.fixture(scope="module")
def lvis_case():
    """Truth, results, and the figures by the rules."""
    truth = lvis_truth(num_images=8)
    results = predictions(truth, most=9)
    expected = {task: lvis_figures(truth, results, task) for task in ("bbox", "segm")}
    return truth, results, expected


def test_lvis_equals_its_rules(lvis_case, register, tmp_path):
    truth, results, expected = lvis_case
    name = register("ap_lvis", truth, "lvis")
    cfg = default_config()
    evaluator = build_evaluator(cfg, name, str(tmp_path / "out"))
    assert isinstance(evaluator, FastLVISEvaluator)
    found = evaluate(evaluator, results)
    for task, figures in expected.items():
        for key, value in figures.items():
            assert found[task][key] == pytest.approx(value, rel=0, abs=1e-9), (task, key)
    assert (tmp_path / "out/lvis_instances_results.json").exists()


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_what_is_not_known_matters_to_lvis(lvis_case, key):
    truth, results, expected = lvis_case
    without = {**truth, "images": [{**image, key: []} for image in truth["images"]]}
    assert lvis_figures(without, results, "bbox") != expected["bbox"]


def test_lvis_counts_300_predictions_of_an_image():
    items = [{"image_id": 4, "score": 0.1 * (n % 7), "n": n} for n in range(400)]
    few = [{"image_id": 2, "score": 0.5, "n": n} for n in range(3)]
    best = best_of_images([*items[:200], *few, *items[200:]], 300)
    # Of equal ones the first.
    assert best == [*sorted(items, key=lambda item: -item["score"])[:300], *few]


def test_trainer_evaluates_a_data_set_in_lvis_format(tmp_path):
    """From files alone, without the package `lvis`."""
    truth = lvis_content()
    for image in truth["images"]:
        save(tmp_path / image["coco_url"].partition("http://")[2], picture(HEIGHT, WIDTH))
    (tmp_path / "lvis.json").write_text(json.dumps(truth))
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_CLASSES = 2
    cfg.MODEL.SOLO.SCORE_THRESH_TEST = cfg.MODEL.SOLO.KEEP_THRESH_TEST = 0.0001
    cfg.INPUT.MIN_SIZE_TEST = cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = ("lvis_made_up",), str(tmp_path)
    names = {"thing_classes": [category["name"] for category in truth["categories"]]}
    register_lvis_instances("lvis_made_up", names, f"{tmp_path}/lvis.json", f"{tmp_path}/")
    check_datasets(["lvis_made_up"])
    results = Trainer.test(cfg, tiny_model(cfg))
    assert {"AP", "APr", "APc", "APf"} <= set(results["segm"])
    file = tmp_path / "inference/lvis_made_up/lvis_instances_results.json"
    saved = json.loads(file.read_text())
    assert {entry["image_id"] for entry in saved} == {1, 2}
    assert {entry["category_id"] for entry in saved} <= {1, 2}


def test_lvis_names_the_package_that_it_needs(register, monkeypatch):
    name = register("ap_lvis_package", lvis_truth(), "lvis")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as if not installed
    with pytest.raises(ConfigError, match="pip install faster-coco-eval"):
        FastLVISEvaluator(name, None)


def test_lvis_without_annotations_or_predictions(register, tmp_path):
    truth = lvis_truth()
    figures = evaluate(FastLVISEvaluator(register("ap_lvis_none", truth, "lvis"), None), [])
    assert set(figures["segm"]) >= {"AP", "APr", "APc", "APf"}
    assert all(math.isnan(value) for part in figures.values() for value in part.values())
    results = predictions(truth)
    for category in truth["categories"]:
        del category["frequency"]
    figures = evaluate(FastLVISEvaluator(register("ap_lvis_all", truth, "lvis"), None), results)
    assert math.isnan(figures["segm"]["APr"])
    assert figures["segm"]["AP"] > 0
    truth["annotations"] = []
    evaluator = FastLVISEvaluator(register("ap_test", truth, "lvis"), str(tmp_path))
    assert evaluate(evaluator, results) == {}
    assert json.loads((tmp_path / "lvis_instances_results.json").read_text()) == results
