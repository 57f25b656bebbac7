"""Any panoptic json and PNG: they are converted and trained on, or refused; a check says so."""

import json
import math
import os
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from solo_d2.data import SOLODatasetMapper, register_panoptic_format
from solo_d2.data.entries import read_entries
from solo_d2.data.panoptic_json import read_segment_ids
from solo_d2.data.problems import ERROR
from solo_d2.evaluation.panoptic_quality import PanopticQualityEvaluator
from solo_d2.utils.errors import DatasetError
from tests import panoptic_files as files
from tests.json_damage import assert_readable, changed, changes_of, put
from tests.modeling.tiny import panoptic_config, tiny_model

pytestmark = pytest.mark.detectron2

NAME = "test_panoptic_fuzz"
CONTENT = files.content()
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1000)
# Pixels of the first PNG that become another id: place, and one that is listed or is not.
REPAINTED = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 3), st.integers(0, 5)),
        st.sampled_from([0, files.SKY, files.CAT, files.CROWD, 77, 256**3 - 1]),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return files.write(tmp_path_factory.mktemp("fuzz") / "data")


@pytest.fixture
def register(root):
    """Write the files anew and register them: `register(content, repainted)`."""

    def forget():
        DatasetCatalog.pop(NAME, None)
        MetadataCatalog.pop(NAME, None)
        shutil.rmtree(root / "panoptic_converted", ignore_errors=True)

    def make(content, repainted):
        forget()
        (root / "panoptic.json").write_text(json.dumps(content))
        ids = files.IDS.copy()
        for place, value in repainted:
            ids[place] = value
        Image.fromarray(files.id_pixels(ids)).save(root / "panoptic" / "1.png")
        paths = (root / name for name in ("panoptic.json", "panoptic", "images"))
        register_panoptic_format(NAME, *map(str, paths))

    yield make
    forget()


@pytest.fixture(scope="module")
def cfg():
    cfg = panoptic_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    return cfg


@pytest.fixture(scope="module")
def mapper(cfg):
    return SOLODatasetMapper(cfg, is_train=True)


def agree(mapper):
    """The check says what loading does, and what is loaded is mapped.

    Returns:
        Records and samples; None where it is refused.
    """
    problems = []
    checked = read_entries(NAME, problems.append).records
    for problem in problems:
        assert_readable(str(problem))
    errors = [str(problem) for problem in problems if problem.severity == ERROR]
    try:
        records = DatasetCatalog.get(NAME)
    except DatasetError as error:
        assert_readable(str(error))
        assert errors, error  # noqa: PT017
        return None
    assert errors == []
    assert records == checked
    return records, [mapper(record) for record in records if os.path.isfile(record["file_name"])]


@QUICK
@given(changes=changes_of(CONTENT), repainted=REPAINTED)
@example(changes=[put("annotations", 0, "segments_info", 1, "iscrowd", value=None)], repainted=[])
@example(changes=[put("categories", 0, "color", value=5)], repainted=[])
@example(changes=[put("annotations", 1, "file_name", value="./1.jpg")], repainted=[])
def test_converted_or_refused_and_the_check_agrees(register, mapper, changes, repainted):
    register(changed(CONTENT, changes), repainted)
    agree(mapper)


@pytest.fixture(scope="module")
def losses_of(cfg):
    """A model in training."""
    model = tiny_model(cfg).train()

    def compute(batch):
        with EventStorage():
            return {name: float(loss.detach()) for name, loss in model(batch).items()}

    return compute


def truth_as_prediction(record):
    """The segments of a record, less crowds, as a model has them."""
    ids = torch.from_numpy(read_segment_ids(record["pan_seg_file_name"]))
    segments = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
    kept = torch.tensor([segment["id"] for segment in segments])
    return {"panoptic_seg": (ids.where(torch.isin(ids, kept), 0), segments)}


@pytest.mark.reliability
@LONG
@given(changes=changes_of(CONTENT, max_size=5), repainted=REPAINTED)
def test_what_is_called_fine_trains(register, cfg, root, mapper, losses_of, changes, repainted):
    register(changed(CONTENT, changes), repainted)
    found = agree(mapper)
    if found is None:
        return
    records, samples = found
    if samples:
        assert all(math.isfinite(loss) for loss in losses_of(samples).values())
    evaluator = PanopticQualityEvaluator(NAME)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [truth_as_prediction(record)])
    figures = evaluator.evaluate()["panoptic_seg"]
    assert figures["PQ"] == pytest.approx(100) or math.isnan(figures["PQ"])
