"""The notebook runs from install to export, and is saved without outputs."""

import copy
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "demo" / "tutorial.ipynb"
# Few steps, and a single level, which exports faster. The low thresholds let such a model find
# instances to compare.
ONE_LEVEL = (
    "SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 0 "
    "MODEL.SOLO.SCORE_THRESH_TEST 0.005 MODEL.SOLO.KEEP_THRESH_TEST 0.001 "
    "MODEL.SOLO.IN_FEATURES ['p3'] MODEL.SOLO.STRIDES [8] MODEL.SOLO.NUM_GRIDS [12] "
    "MODEL.SOLO.SCALE_RANGES [[1,1024]] MODEL.SOLO.HEAD.NUM_CONVS 1 "
    "MODEL.SOLO.MASK_FEATURE.IN_FEATURES ['p2']"
)


@pytest.fixture(scope="module")
def notebook():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_is_saved_without_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.detectron2
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ONE_LEVEL, id="one level"),
        pytest.param("", id="as readers run it", marks=pytest.mark.reliability),
    ],
)
def test_runs(notebook, options, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("TUTORIAL_OUTPUT", str(tmp_path))
    monkeypatch.setenv("TUTORIAL_OPTIONS", options)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    notebook = copy.deepcopy(notebook)
    settings = {"timeout": 400, "kernel_name": "python3", "resources": folder}
    nbclient.NotebookClient(notebook, **settings).execute()
    assert (tmp_path / "model.onnx").stat().st_size > 1e6
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5  # an example, two of targets, two predictions
