"""The wheel as another project installs it: away from the checkout, it is whole and works."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.detectron2]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")

# Of all modules: the environment of the tests has every package that one of them may need.
IMPORT_ALL = """
import importlib, pathlib, sys
import solo_d2

package = pathlib.Path(solo_d2.__file__).parent
assert package == pathlib.Path(sys.argv[1]), package
for file in sorted(package.rglob("*.py")):
    parts = file.relative_to(package.parent).with_suffix("").parts
    if "configs" not in parts:
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
"""
TRAIN_AND_PREDICT = """
import numpy as np
from solo_d2 import Predictor
from solo_d2.config import load_config
from solo_d2.data.shapes.folder import ShapesParams, ensure_shapes
from solo_d2.engine import Trainer, argument_parser, setup

ensure_shapes("shapes", ShapesParams(num_train=4, num_val=1))
arguments = [
    *("--config-file", "configs/quickstart/solov2_shapes.yaml"),
    *("--train-json", "shapes/annotations/instances_train.json", "--train-images", "shapes/train"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"),
    *("OUTPUT_DIR", "output", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SOLO.HEAD.CONV_DIM", "32"),
]
trainer = Trainer(setup(argument_parser().parse_args(arguments)))
trainer.resume_or_load(resume=False)
trainer.train()
predictor = Predictor("output/model_final.pth", score_thresh=0.0)
result = predictor(np.zeros((48, 64, 3), np.uint8))
assert result.image_size == (48, 64)
assert load_config("coco/solov2_R50_1x.yaml").MODEL.SOLO.HEAD.NAME == "SOLOv2Head"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy of the files that decide about it, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("solo_d2", "configs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(folder))
    run(["-m", "pip", "wheel", *options, str(source)], folder)
    return next(folder.glob("solo_d2-*.whl"))


def run(command, cwd, **environ):
    """Run Python away from the checkout, and fail with what it prints."""
    environ = {**os.environ, **environ}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def files_below(folder, pattern):
    return {file.relative_to(folder).as_posix() for file in folder.rglob(pattern)}


def test_it_holds_every_module_and_config_and_nothing_else(wheel):
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"solo_d2/{name}" for name in files_below(ROOT / "solo_d2", "*.py")}
    configs = {
        f"solo_d2/configs/{name}"
        for pattern in ("*.yaml", "*.json", "*.py")
        for name in files_below(ROOT / "configs", pattern)
    }
    assert found == modules | configs


def test_every_module_can_be_imported_and_it_trains_and_predicts(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    arguments = ("-c", IMPORT_ALL + TRAIN_AND_PREDICT, str(tmp_path / "installed/solo_d2"))
    run(arguments, tmp_path, PYTHONPATH=str(tmp_path / "installed"))
