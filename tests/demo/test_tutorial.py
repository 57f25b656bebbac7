"""The notebook runs from install to export, and is saved without outputs."""

import json
import sys
from pathlib import Path
from shutil import copy

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "demo" / "tutorial.ipynb"
# Few steps of a small model (tests/export/models.py). The low thresholds let it find instances.
SMALL = (
    "SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 0 MODEL.BACKBONE.NAME OneConvEach "
    "MODEL.SOLO.SCORE_THRESH_TEST 0.005 MODEL.SOLO.KEEP_THRESH_TEST 0.001 "
    "MODEL.SOLO.IN_FEATURES ['p3'] MODEL.SOLO.STRIDES [8] MODEL.SOLO.NUM_GRIDS [12] "
    "MODEL.SOLO.SCALE_RANGES [[1,1024]] MODEL.SOLO.HEAD.NUM_CONVS 1 "
    "MODEL.SOLO.MASK_FEATURE.IN_FEATURES ['p2']"
)


@pytest.fixture(scope="module")
def cells():
    """The cells of code."""
    content = json.loads(NOTEBOOK.read_text())
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_is_saved_without_outputs(cells):
    assert len(cells) > 5
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


def export_nothing(monkeypatch, exported):
    """Save another model that was exported, which takes a minute, after a check without tracing."""
    from tests.export.models import pipeline_detector
    from tools import export_model

    made = []
    monkeypatch.setattr(export_model, "trace", lambda *args: made.append(args))
    save, load = (
        (lambda _, path: copy(exported.onnx, path)),
        (lambda _: pipeline_detector(*made[0])),
    )
    monkeypatch.setitem(export_model.FORMATS, "onnx", (save, load))


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.detectron2
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(SMALL, id="small"),
        pytest.param("", id="as readers run it", marks=pytest.mark.reliability),
    ],
)
def test_runs(cells, options, tmp_path, monkeypatch, request):
    shells = pytest.importorskip("IPython.core.interactiveshell")
    from IPython.utils.capture import capture_output

    if options:
        export_nothing(monkeypatch, request.getfixturevalue("exported"))
    monkeypatch.setenv("TUTORIAL_OUTPUT", str(tmp_path))
    monkeypatch.setenv("TUTORIAL_OPTIONS", options)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(NOTEBOOK.parent)
    shell, pictures = shells.InteractiveShell.instance(), 0
    for cell in cells:
        with capture_output() as captured:
            result = shell.run_cell("".join(cell["source"]))
        assert result.success, captured.stdout + captured.stderr
        pictures += sum("image/png" in output.data for output in captured.outputs)
    shells.InteractiveShell.clear_instance()
    assert pictures == 5  # an example, two of targets, two predictions
    assert (tmp_path / "model.onnx").stat().st_size > 1e5
