"""The method works without Detectron2 and triton; import-linter checks what names what."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PURE = (
    "structures.py",
    "targets.py",
    "losses.py",
    "inference.py",
    "ops/*.py",
    "utils/images.py",
)
PROGRAM = """
import importlib, sys
import torch  # which may look for triton itself

for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
    del sys.modules[name]
sys.modules["triton"] = sys.modules["detectron2"] = None  # an import of them fails
for name in sys.argv[1:]:
    for loaded in [x for x in sys.modules if x.startswith("solo_d2")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""


def import_blocked(*names):
    """Import modules in a process of their own, each without the others."""
    command = [sys.executable, "-c", PROGRAM, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_pure_modules_need_neither_detectron2_nor_triton():
    files = sorted(file for pattern in PURE for file in (ROOT / "solo_d2").glob(pattern))
    assert len(files) > 15
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    done = import_blocked(*(".".join(x).removesuffix(".__init__") for x in parts))
    assert done.returncode == 0, done.stderr
    assert import_blocked("solo_d2.ops.triton.nms_decay").returncode == 1
