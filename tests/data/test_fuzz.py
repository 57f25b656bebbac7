"""Any annotation file: it is loaded and trained on, or refused; a check says so before.

Quick here, and with many more examples, training and evaluation under the marker `reliability`.
"""

import json
import math
import os

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import register_lvis_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, example, given, settings

from solo_d2.data import SOLODatasetMapper, check_datasets, register_coco_format
from solo_d2.data.catalog import class_names
from solo_d2.data.entries import read_entries
from solo_d2.data.problems import ERROR
from solo_d2.evaluation import build_evaluator
from solo_d2.utils.errors import ConfigError, DatasetError
from tests.json_damage import (
    HEIGHT,
    WIDTH,
    assert_readable,
    changed,
    changes_of,
    coco_content,
    damaged_text,
    lvis_content,
    put,
)
from tests.modeling.tiny import tiny_config, tiny_model
from tools.dataset_check.page import draw_page
from tools.dataset_check.report import format_findings, to_json
from tools.dataset_check.run import check_dataset

pytestmark = pytest.mark.detectron2

NAME = "test_fuzz"
HOST = "images.cocodataset.org"
COCO, LVIS = coco_content(), lvis_content()
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / HOST).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name in ("a.png", "b.png", f"{HOST}/a.png", f"{HOST}/b.png"):
        cv2.imwrite(str(folder / name), pixels)
    return folder


@pytest.fixture(scope="module")
def cfg():
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.DATASETS.TRAIN = (NAME,)
    return cfg


@pytest.fixture(scope="module")
def mapper(cfg):
    return SOLODatasetMapper(cfg, is_train=True)


@pytest.fixture
def register(folder):
    """Write a json and register it anew: `register(content or bytes, is_lvis)`."""

    def forget():
        DatasetCatalog.pop(NAME, None)
        MetadataCatalog.pop(NAME, None)

    def make(content, is_lvis=False):
        forget()
        file = folder / "fuzz.json"
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        if is_lvis:
            register_lvis_instances(NAME, {"thing_classes": ["cat", "dog"]}, str(file), str(folder))
        else:
            register_coco_format(NAME, file, folder)
        check_datasets([NAME])

    yield make
    forget()


def outcome(function, *arguments):
    """The result, or the text of a DatasetError; nothing else is caught."""
    try:
        return function(*arguments), None
    except DatasetError as error:
        text = str(error)
    assert_readable(text)
    return None, text


def agree(mapper):
    """The check says of the registered data set what loading does, and what is loaded is mapped.

    Returns:
        Records and samples; None where it is refused.
    """
    problems = []
    checked = read_entries(NAME, problems.append).records
    for problem in problems:
        assert_readable(str(problem))
    errors = [str(problem) for problem in problems if problem.severity == ERROR]
    records, refusal = outcome(DatasetCatalog.get, NAME)
    assert bool(errors) == (refusal is not None), (errors, refusal)
    if refusal is not None:
        return None
    assert records == checked
    assert class_names(NAME) == MetadataCatalog.get(NAME).thing_classes
    samples = []
    for record in records:
        sample, refusal = outcome(mapper, record)
        assert (refusal is None) == fits_its_file(record), refusal
        samples.append(sample)
    return records, samples


def fits_its_file(record):
    """Whether the size is the file's, which the json alone does not tell."""
    size = record["height"], record["width"]
    return size == (HEIGHT, WIDTH) and os.path.isfile(record["file_name"])


FOUND = [
    [put("annotations", 1, "segmentation", "size", value=20)],
    [put("annotations", 0, "segmentation", 0, 1, value=1e9)],
    [put("annotations", 0, "bbox", value=[1, 10**400, 2, 2])],
    [put("annotations", 2, "segmentation", "counts", value=[2**63 - 1, 2**63 - 1, 602])],
]


@QUICK
@given(changes=changes_of(COCO))
@example(changes=FOUND[0])
@example(changes=FOUND[1])
@example(changes=FOUND[2])
@example(changes=FOUND[3])
def test_loaded_or_refused_and_the_check_agrees(register, mapper, changes):
    register(changed(COCO, changes))
    agree(mapper)


@QUICK
@given(changes=changes_of(LVIS))
def test_lvis_is_loaded_or_refused_and_the_check_agrees(register, mapper, changes):
    register(changed(LVIS, changes), is_lvis=True)
    agree(mapper)


@QUICK
@given(text=damaged_text(COCO))
def test_a_damaged_file_is_loaded_or_refused(register, mapper, text):
    register(text)
    agree(mapper)


# --- long: what is called fine is trained on and evaluated


@pytest.fixture(scope="module")
def losses_of(cfg):
    """A model in training."""
    model = tiny_model(cfg).train()

    def compute(batch):
        with EventStorage():
            return {name: float(loss.detach()) for name, loss in model(batch).items()}

    return compute


def predictions():
    """Of each class one that covers the square."""
    found = Instances((HEIGHT, WIDTH))
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[3:9, 4:12] = True
    found.pred_boxes = Boxes(torch.tensor([[4.0, 3.0, 12.0, 9.0]] * 2))
    found.pred_masks = mask.expand(2, -1, -1)
    found.pred_classes = torch.tensor([0, 1])
    found.scores = torch.tensor([0.9, 0.8])
    return found


def use(cfg, losses_of, folder, found):
    """Check it with its images, train and evaluate: each works, or has said why not."""
    findings = check_dataset(cfg, NAME)
    json.dumps(to_json(findings))
    format_findings(findings, cfg).encode()
    draw_page(findings)
    for problem in findings.problems:
        assert_readable(str(problem))
    if found is None:
        assert findings.training_fails
        return
    records, samples = found
    there = [record for record in records if os.path.isfile(record["file_name"])]
    objects = any(not a["iscrowd"] for record in records for a in record["annotations"])
    assert findings.training_fails == (not (objects and all(map(fits_its_file, there))))
    batch = [sample for sample in samples if sample is not None and len(class_names(NAME)) <= 5]
    if batch:
        assert all(math.isfinite(loss) for loss in losses_of(batch).values())
    evaluator = build_evaluator(cfg, NAME, str(folder / "evaluated"))
    evaluator.reset()
    for record in records:
        evaluator.process([record], [{"instances": predictions()}])
    try:
        evaluator.evaluate()
    except ConfigError as error:
        assert len(class_names(NAME)) < 2, error  # noqa: PT017


@pytest.mark.reliability
@LONG
@given(changes=changes_of(COCO, max_size=5))
def test_what_is_called_fine_trains(register, folder, cfg, mapper, losses_of, changes):
    register(changed(COCO, changes))
    use(cfg, losses_of, folder, agree(mapper))


@pytest.mark.reliability
@LONG
@given(changes=changes_of(LVIS, max_size=5))
def test_what_is_called_fine_trains_lvis(register, folder, cfg, mapper, losses_of, changes):
    register(changed(LVIS, changes), is_lvis=True)
    use(cfg, losses_of, folder, agree(mapper))


@pytest.mark.reliability
@LONG
@given(text=damaged_text(COCO))
def test_what_is_called_fine_trains_of_damaged_text(register, folder, cfg, mapper, losses_of, text):
    register(text)
    use(cfg, losses_of, folder, agree(mapper))
