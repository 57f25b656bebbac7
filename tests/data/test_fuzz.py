"""Any annotation file: it is loaded and trained on, or refused; a check says so before.

Quick here, and with many more examples, training and evaluation under the marker `reliability`.
"""

import json
import math
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import register_lvis_instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from solo_d2.data import (
    SOLODatasetMapper,
    check_datasets,
    register_coco_format,
    register_panoptic_format,
)
from solo_d2.data.catalog import class_names
from solo_d2.data.entries import read_entries
from solo_d2.data.panoptic_json import read_segment_ids
from solo_d2.data.problems import ERROR
from solo_d2.evaluation import build_evaluator
from solo_d2.evaluation.panoptic_quality import PanopticQualityEvaluator
from solo_d2.utils.errors import ConfigError, DatasetError
from tests import panoptic_files as files
from tests.evaluation.made_up import rectangles
from tests.json_damage import (
    HEIGHT,
    WIDTH,
    assert_readable,
    changed,
    changes_of,
    coco_content,
    damaged_text,
    lvis_content,
)
from tests.modeling.tiny import losses_of, panoptic_config, tiny_config, tiny_model
from tools.dataset_check.page import draw_page
from tools.dataset_check.report import format_findings, to_json
from tools.dataset_check.run import check_dataset

pytestmark = pytest.mark.detectron2

NAME = "test_fuzz"
HOST = "images.cocodataset.org"
COCO, LVIS, PANOPTIC = coco_content(), lvis_content(), files.content()
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1000)
# Of each kind of json: changes or a damaged text, and whether it is LVIS's.
KINDS = {
    "coco": lambda size: (changes_of(COCO, size).map(lambda found: changed(COCO, found)), False),
    "lvis": lambda size: (changes_of(LVIS, size).map(lambda found: changed(LVIS, found)), True),
    "text": lambda size: (damaged_text(COCO), False),
}
# Pixels of the first panoptic PNG that become another id: place, and one that is listed or is not.
REPAINTED = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 3), st.integers(0, 5)),
        st.sampled_from([0, files.SKY, files.CAT, files.CROWD, 77, 256**3 - 1]),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / HOST).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name in ("a.png", "b.png", f"{HOST}/a.png", f"{HOST}/b.png"):
        cv2.imwrite(str(folder / name), pixels)
    files.write(folder / "panoptic")
    return folder


@pytest.fixture(scope="module")
def setting():
    """By whether the model is panoptic: config and mapper."""

    def make(cfg):
        cfg.INPUT.MIN_SIZE_TRAIN = (48,)
        cfg.DATASETS.TRAIN = (NAME,)
        return cfg, SOLODatasetMapper(cfg, is_train=True)

    panoptic = panoptic_config()
    panoptic.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    return make(tiny_config()), make(panoptic)


@pytest.fixture
def register(folder):
    """Write a json and register it anew: `register(content or bytes, is_lvis)`."""

    def make(content, is_lvis=False):
        forget()
        file = folder / "fuzz.json"
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        if is_lvis:
            register_lvis_instances(NAME, {"thing_classes": ["cat", "dog"]}, str(file), str(folder))
        else:
            register_coco_format(NAME, file, folder)
        check_datasets([NAME])

    return make


@pytest.fixture
def register_panoptic(folder):
    """Write the panoptic files anew and register them: `register_panoptic(content, repainted)`."""
    root = folder / "panoptic"

    def make(content, repainted):
        forget()
        shutil.rmtree(root / "panoptic_converted", ignore_errors=True)
        (root / "panoptic.json").write_text(json.dumps(content))
        ids = files.IDS.copy()
        for place, value in repainted:
            ids[place] = value
        Image.fromarray(files.id_pixels(ids)).save(root / "panoptic" / "1.png")
        paths = (root / name for name in ("panoptic.json", "panoptic", "images"))
        register_panoptic_format(NAME, *map(str, paths))

    return make


def forget():
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


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
    checked = read_entries(NAME, problems.append)[0]
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
    if not os.path.isfile(record["file_name"]):
        return False
    return Image.open(record["file_name"]).size == (record["width"], record["height"])


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_loaded_or_refused_and_the_check_agrees(register, setting, kind, data):
    contents, is_lvis = KINDS[kind](3)
    register(data.draw(contents), is_lvis)
    agree(setting[0][1])


@QUICK
@given(changes=changes_of(PANOPTIC), repainted=REPAINTED)
def test_panoptic_is_converted_or_refused(register_panoptic, setting, changes, repainted):
    register_panoptic(changed(PANOPTIC, changes), repainted)
    agree(setting[1][1])


# --- long: what is called fine is trained on and evaluated


def assert_trains(cfg, samples):
    losses, _ = losses_of(tiny_model(cfg), [sample for sample in samples if sample])
    assert all(loss.isfinite() for loss in losses.values())


def use(setting, folder):
    """Check it with its images, train and evaluate: each works, or has said why not."""
    cfg, mapper = setting[0]
    found, findings = agree(mapper), check_dataset(cfg, NAME)
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
    if any(samples) and len(class_names(NAME)) <= 5:
        assert_trains(cfg, samples)
    evaluator = build_evaluator(cfg, NAME, str(folder / "evaluated"))
    evaluator.reset()
    for record in records:  # of each class a prediction that covers the square
        boxes = [(4, 3, 12, 9)] * 2
        instances = rectangles((HEIGHT, WIDTH), *boxes, scores=[0.9, 0.8], classes=[0, 1])
        evaluator.process([record], [{"instances": instances}])
    try:
        evaluator.evaluate()
    except ConfigError as error:
        assert len(class_names(NAME)) < 2, error  # noqa: PT017


@pytest.mark.reliability
@pytest.mark.parametrize("kind", KINDS)
@LONG
@given(data=st.data())
def test_what_is_called_fine_trains(register, folder, setting, kind, data):
    contents, is_lvis = KINDS[kind](5)
    register(data.draw(contents), is_lvis)
    use(setting, folder)


def truth_as_prediction(record):
    """The segments of a record, less crowds, as a model has them."""
    ids = torch.from_numpy(read_segment_ids(record["pan_seg_file_name"]))
    segments = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
    kept = torch.tensor([segment["id"] for segment in segments])
    return {"panoptic_seg": (ids.where(torch.isin(ids, kept), 0), segments)}


@pytest.mark.reliability
@LONG
@given(changes=changes_of(PANOPTIC, max_size=5), repainted=REPAINTED)
def test_what_is_called_fine_trains_panoptic(register_panoptic, setting, changes, repainted):
    register_panoptic(changed(PANOPTIC, changes), repainted)
    cfg, mapper = setting[1]
    found = agree(mapper)
    if found is None:
        return
    records, samples = found
    if any(samples):
        assert_trains(cfg, samples)
    evaluator = PanopticQualityEvaluator(NAME)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [truth_as_prediction(record)])
    metrics = evaluator.evaluate()["panoptic_seg"]
    assert metrics["PQ"] == pytest.approx(100) or math.isnan(metrics["PQ"])
