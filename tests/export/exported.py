"""One export by the command line, for all tests: it takes seconds. A plugin of conftest.py."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# What the checkpoint says of its five classes.
CLASSES = [{"id": 3 * n + 2, "isthing": 1, "name": f"thing {n}"} for n in range(5)]


@dataclass
class Exported:
    """What `tools/export_model.py` was given and what it made.

    Attributes:
        folder: config.yaml, model.pth and images/.
        model: the model of these weights.
        export: the traced pipeline.
        onnx: the file that was written.
    """

    folder: Path
    model: Any
    export: Any
    onnx: Path


@pytest.fixture(scope="session")
def export_tool():
    """The module of the command line."""
    # Detectron2 installs a package `tools`, so the file is imported from its folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    import export_model

    return export_model


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory):
    """A config and weights of a small model, and images."""
    import torch

    from tests.export.models import small_config, small_model

    folder = tmp_path_factory.mktemp("model")
    cfg = small_config()
    cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (), "DATASETS.TEST", ()),
            *("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160),
        ]
    )
    torch.save({"model": small_model().state_dict(), "classes": CLASSES}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    _save_pictures(folder / "images")
    return folder


def _save_pictures(folder):
    """Smooth ones, so that decoders and resizes of different libraries give the same pixels."""
    from PIL import Image

    folder.mkdir()
    for name, (height, width) in {"a.png": (70, 100), "b.png": (120, 90)}.items():
        y, x = np.mgrid[:height, :width]
        image = np.stack([x * 2, y * 2, (x + y)], axis=2).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / name)


@pytest.fixture(scope="session")
def exported(export_tool, export_folder):
    """The model as ONNX."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.export.models import small_model

    made = []
    trace = export_tool.trace
    output = export_folder / "out" / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_tool, "trace", lambda *args: made.append(trace(*args)) or made[-1])
        arguments = [*model_arguments(export_folder), "--check-images", export_folder / "images"]
        assert export_tool.main([*map(str, arguments), "--output", str(output)]) == 0
    assert [file.name for file in output.parent.iterdir()] == ["model.onnx"]
    return Exported(export_folder, small_model(), made[0], output)


def model_arguments(folder):
    return ["--config-file", folder / "config.yaml", "--weights", folder / "model.pth"]
