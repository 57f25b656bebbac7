"""Which evaluator a data set gets, and that it survives what a bad model or data set gives it."""

import json
import math
from functools import partial

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.evaluation import COCOEvaluator

from solo_d2.config import default_config
from solo_d2.evaluation import build_evaluator
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.evaluation.made_up import images_of, rectangle, rectangles, register_json

pytestmark = pytest.mark.detectron2

SIZE = (40, 60)
BOX = (10, 5, 30, 25)  # XYXY


def annotations(without=None, box=BOX):
    annotation = rectangle(1, box, 3, 7)
    annotation.pop(without, None)
    return {
        "images": images_of(SIZE, 3),
        "annotations": [annotation],
        "categories": [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


@pytest.fixture
def cfg(tmp_path):
    cfg = default_config()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


@pytest.fixture
def register(tmp_path):
    return partial(register_json, tmp_path)


@pytest.fixture
def bare_dataset():
    """A registered data set without metadata."""
    DatasetCatalog.register("bare", list)
    MetadataCatalog.get("bare").thing_classes = ["thing"]
    return "bare"


def instances(*boxes, scores=None):
    return rectangles(SIZE, *boxes, scores=scores, classes=[1] * len(boxes))


def run(evaluator, found):
    evaluator.reset()
    evaluator.process([{"image_id": 3}], [{"instances": found}])
    return evaluator.evaluate()


def test_coco_scores_masks_and_boxes(cfg, register, tmp_path):
    evaluator = build_evaluator(cfg, register("eval_coco", annotations()))
    assert isinstance(evaluator, COCOEvaluator)
    results = run(evaluator, instances(BOX, (0, 0, 5, 5), scores=[0.9, 0.5]))
    figures = results["segm"]["AP"], results["bbox"]["AP"], results["segm"]["AP-dog"]
    assert figures == pytest.approx([100] * 3)
    assert math.isnan(results["segm"]["AP-cat"])  # has no annotation
    saved = tmp_path / "output" / "inference" / "eval_coco" / "coco_instances_results.json"
    assert [r["category_id"] for r in json.loads(saved.read_text())] == [7, 7]


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_json_without_keys_that_pycocotools_needs(cfg, register, key):
    name = register(f"eval_no_{key}", annotations(key))
    for _ in range(2):  # as at every evaluation during a training
        results = run(build_evaluator(cfg, name), instances(BOX))
        assert results["segm"]["AP"] == pytest.approx(100)


def test_changed_annotations_are_not_taken_from_an_old_conversion(cfg, register, tmp_path):
    name = register("eval_changed", annotations("area"))
    assert run(build_evaluator(cfg, name), instances(BOX))["segm"]["AP"] == pytest.approx(100)
    changed = annotations("area", box=(40, 5, 55, 20))
    (tmp_path / "eval_changed.json").write_text(json.dumps(changed))
    assert run(build_evaluator(cfg, name), instances(BOX))["segm"]["AP"] == pytest.approx(0)


def test_generated_data_set_is_made_when_it_is_missing(cfg, tmp_path):
    json_file = tmp_path / "made.json"

    def make():
        json_file.write_text(json.dumps(annotations()))
        return load_coco_json(str(json_file), str(tmp_path), "eval_made")

    DatasetCatalog.register("eval_made", make)
    MetadataCatalog.get("eval_made").set(
        evaluator_type="coco", json_file=str(json_file), made_on_first_use=True
    )
    build_evaluator(cfg, "eval_made")
    assert json_file.exists()


def test_unknown_type_names_data_set_type_and_choices(cfg, bare_dataset):
    with pytest.raises(ConfigError, match=r"'bare' has no evaluator_type.*cityscapes.*coco.*lvis"):
        build_evaluator(cfg, bare_dataset)
    MetadataCatalog.get(bare_dataset).evaluator_type = "pascal_voc"
    with pytest.raises(ConfigError, match="'bare' has evaluator_type 'pascal_voc'"):
        build_evaluator(cfg, bare_dataset)


def test_unknown_data_set_and_missing_json(cfg, register, tmp_path):
    with pytest.raises(DatasetError, match="'nowhere' is not registered"):
        build_evaluator(cfg, "nowhere")
    name = register("eval_gone", annotations())
    (tmp_path / "eval_gone.json").unlink()
    with pytest.raises(DatasetError, match=r"eval_gone\.json"):
        build_evaluator(cfg, name)
