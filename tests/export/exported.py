"""One export by the command line, for all tests and workers. A plugin of conftest.py."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# What the checkpoint says of its five classes.
CLASSES = [{"id": 3 * n + 2, "isthing": 1, "name": f"thing {n}"} for n in range(5)]


@dataclass
class Exported:
    """A model, its config.yaml, model.pth and images/, and what was made of it, for reading alone.

    Attributes:
        folder: of the files.
        model: the model of these weights.
        onnx: what `tools/export_model.py` wrote.
        program: the traced pipeline as written by `save_program`.
    """

    folder: Path
    model: Any
    onnx: Path
    program: Path


@pytest.fixture(scope="session")
def export_tool():
    """The module of the command line."""
    from tools import export_model

    return export_model


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory):
    """A config and weights of a small model, and images."""
    folder = tmp_path_factory.mktemp("model")
    make_files(folder)
    return folder


def make_files(folder):
    from tests.export.models import small_config, small_model
    from tests.modeling.tiny import save_checkpoint

    cfg = small_config("DATASETS.TRAIN", (), "DATASETS.TEST", ())
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160])
    save_checkpoint(folder, cfg, small_model(), classes=CLASSES)
    _save_pictures(folder / "images")


def _save_pictures(folder):
    """Smooth ones, so that decoders and resizes of different libraries give the same pixels."""
    from PIL import Image

    folder.mkdir()
    for name, (height, width) in {"a.png": (70, 100), "b.png": (120, 90)}.items():
        y, x = np.mgrid[:height, :width]
        image = np.stack([x * 2, y * 2, (x + y)], axis=2).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / name)


@pytest.fixture(scope="session")
def exported(export_tool, tmp_path_factory):
    """The model as ONNX, and as a program of torch.export."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from filelock import FileLock

    from tests.export.models import small_model

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    folder, made = root / "exported", root / "exported" / "done"
    with FileLock(root / "exported.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a worker could not finish
            folder.mkdir()
            make_files(folder)
            _export(export_tool, folder)
            made.touch()
    return Exported(folder, small_model(), folder / "onnx" / "model.onnx", folder / "model.pt2")


def _export(export_tool, folder):
    from solo_d2.export.programs import save_program

    traced = []
    trace = export_tool.trace
    output = folder / "onnx" / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_tool, "trace", lambda *args: traced.append(trace(*args)) or traced[-1])
        arguments = [*model_arguments(folder), "--check-images", folder / "images"]
        assert export_tool.main([*map(str, arguments), "--output", str(output)]) == 0
    assert [file.name for file in output.parent.iterdir()] == ["model.onnx"]
    save_program(traced[0], folder / "model.pt2")


def model_arguments(folder):
    return ["--config-file", folder / "config.yaml", "--weights", folder / "model.pth"]
