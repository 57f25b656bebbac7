"""The wheel as another project installs it: whole, without side effects, and it works."""

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

# What importing every module changes in Detectron2, other libraries or the process, and whether
# each can be imported: this environment has every package that one of them may need.
IMPORT_ALL = """
import importlib, json, logging, os, pkgutil, signal, sys
import cv2, PIL.Image, torch
import detectron2.data.datasets, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
import fvcore.transforms.transform, pycocotools.coco
from detectron2.data import DatasetCatalog, MetadataCatalog

MINE = ("shapes_train", "cityscapes_fine_panoptic_val_separated")
for name in MINE:
    DatasetCatalog.register(name, list)
MetadataCatalog.get(MINE[0]).thing_classes = ["mine"]
LIBRARIES = ("detectron2", "fvcore", "pycocotools", "PIL", "cv2")
NAMES = [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]
DATA_SETS = DatasetCatalog.list()

def state():
    found = {}
    for name in DATA_SETS:
        found["loader of " + name] = id(DatasetCatalog[name])
        found["metadata of " + name] = repr(MetadataCatalog.get(name).as_dict())
    for name in ("", "detectron2", "fvcore", "PIL", "torch", "py.warnings"):
        log = logging.getLogger(name)
        handlers = [repr(handler) for handler in log.handlers]
        found["logger " + name] = repr((log.level, handlers, log.filters, log.propagate))
    for name in NAMES:
        for key, value in list(vars(sys.modules[name]).items()):
            if key.startswith("__") or (name, key) == ("PIL.Image", "_initialized"):
                continue
            found[f"{name}.{key}"] = id(value)
            for attribute, part in vars(value).items() if isinstance(value, type) else ():
                if attribute.startswith(("__", "_abc")):
                    continue
                found[f"{name}.{key}.{attribute}"] = id(part)
    found["torch"] = repr((
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), cv2.getNumThreads(),
    ))
    found["hooks"] = repr((sys.excepthook, sys.unraisablehook, logging.raiseExceptions))
    found["signals"] = repr([signal.getsignal(number) for number in signal.valid_signals()])
    found["environment"] = repr(sorted(os.environ.items()))
    found["faked modules"] = repr([name for name in sys.modules if "deeplearning" in name])
    return found

before = state()
import solo_d2
assert solo_d2.__path__ == [sys.argv[1]], solo_d2.__path__
for module in pkgutil.walk_packages(solo_d2.__path__, "solo_d2.", onerror=importlib.import_module):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = state()
assert not [key for key in before if before[key] != after.get(key)]
for name in MINE:
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
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


def test_importing_every_module_changes_no_global_state_and_it_trains_and_predicts(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    arguments = ("-c", IMPORT_ALL + TRAIN_AND_PREDICT, str(tmp_path / "installed/solo_d2"))
    run(arguments, tmp_path, PYTHONPATH=str(tmp_path / "installed"))
