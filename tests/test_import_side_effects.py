"""Importing the package changes nothing in Detectron2, other libraries or the process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.detectron2
ROOT = Path(__file__).resolve().parent.parent

# A process of its own, so that no other test has imported anything.
PROGRAM = """
import importlib, json, logging, os, pkgutil, signal, sys
import cv2, PIL.Image, torch
import detectron2.data.datasets, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
import fvcore.transforms.transform, pycocotools.coco
from detectron2.data import DatasetCatalog, MetadataCatalog

DatasetCatalog.register("shapes_train", list)
MetadataCatalog.get("shapes_train").thing_classes = ["mine"]
DatasetCatalog.register("cityscapes_fine_panoptic_val_separated", list)
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
failed = []
for module in pkgutil.walk_packages(solo_d2.__path__, "solo_d2.", onerror=failed.append):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:  # a package that is not installed
            failed.append(f"{module.name}: {error.name}")
after = state()
changed = [key for key in before if before[key] != after.get(key)]
print(json.dumps({"changed": changed, "failed": failed, "modules": len(sys.modules)}))
"""


def test_importing_every_module_changes_no_global_state():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["changed"] == []
    optional = {"triton", "onnx", "onnxscript", "onnxruntime", "panopticapi", "timm"}
    assert {line.rpartition(" ")[2] for line in found["failed"]} <= optional
