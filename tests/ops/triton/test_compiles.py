"""Kernels compile for the GPUs that run them; the interpreter runs what the compiler refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", "3.4")
SCRIPT = Path(__file__).with_name("compile_kernels.py")
KERNELS = (
    *("extent", "overlap", "unsort", "worst", "decay", "hard", "soft"),
    *("dynamic_masks", "binarize", "mask_scores", "span", "paste"),
)


@pytest.mark.parametrize(
    "capability",
    [90, *(pytest.param(cc, marks=pytest.mark.reliability) for cc in (80, 86, 89, 100, 120))],
)
def test_kernels_compile(tmp_path, capability):
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[3])}
    command = [sys.executable, SCRIPT, str(capability)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table, variants = done.stdout.split("programs of each kernel")
    for kernel in KERNELS:
        assert f"`_{kernel}_kernel`" in table
        assert f"'_{kernel}_kernel'" in variants
