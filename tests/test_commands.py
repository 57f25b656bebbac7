"""What commands set for their own process; the library sets nothing (test_wheel)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from solo_d2.utils.commands import share_cores

ROOT = Path(__file__).resolve().parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.detectron2
def test_threads_of_a_training_sleep_while_they_wait():
    """Torch is imported after the setting. Importing torchvision fails, which saves seconds."""
    environ = {key: value for key, value in os.environ.items() if key not in WAITING}
    program = "import runpy, sys; sys.modules['torchvision'] = None; "
    program += "runpy.run_path('train_net.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environ, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torchvision" in done.stderr.splitlines()[-1]
    shown = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if shown is None:
        pytest.skip("torch's OpenMP does not show its settings")
    assert shown[1] == "0"


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_has_set_stays(name, monkeypatch):
    for other in WAITING:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "100")
    share_cores()
    assert {key: os.environ[key] for key in WAITING if key in os.environ} == {name: "100"}
