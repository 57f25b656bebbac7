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
    try:
        importlib.import_module(name)
    except ImportError:
        if not name.startswith("solo_d2.ops.triton."):
            raise
        print(name)
"""
KERNEL = "solo_d2.ops.triton.nms_decay"


def test_pure_modules_need_neither_detectron2_nor_triton():
    files = sorted(file for pattern in PURE for file in (ROOT / "solo_d2").glob(pattern))
    assert len(files) > 15
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    names = [".".join(x).removesuffix(".__init__") for x in parts]
    # The kernel does need triton: what is blocked is really missing.
    command = [sys.executable, "-c", PROGRAM, *names, KERNEL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [KERNEL]
