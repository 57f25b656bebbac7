"""The notebook runs from install to export, and is saved without outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "demo" / "tutorial.ipynb"
# A few steps instead of 200. The low thresholds let such a model find instances to compare.
OPTIONS = (
    "SOLVER.MAX_ITER 20 SOLVER.WARMUP_ITERS 2 "
    "MODEL.SOLO.SCORE_THRESH_TEST 0.02 MODEL.SOLO.KEEP_THRESH_TEST 0.005"
)


@pytest.fixture(scope="module")
def notebook():
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
def test_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTORIAL_OUTPUT", str(tmp_path))
    monkeypatch.setenv("TUTORIAL_OPTIONS", OPTIONS)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources=folder).execute()
    assert (tmp_path / "model.onnx").stat().st_size > 1e6
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5  # an example, two of targets, two predictions
