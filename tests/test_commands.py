"""What commands set for their own process, and that the library sets nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def spin_count(*command, **variables):
    """How often threads of a Python command look for the others before they sleep."""
    environ = {key: value for key, value in os.environ.items() if key not in WAITING}
    environ |= {"OMP_DISPLAY_ENV": "verbose", **variables}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if shown is None:
        pytest.skip("torch's OpenMP does not show its settings")
    return int(shown[1])


@pytest.mark.detectron2
def test_threads_of_a_training_sleep_while_they_wait():
    assert spin_count("train_net.py", "--help") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "200")],
)
def test_what_the_user_has_set_stays(name, value):
    code = "from solo_d2.utils.commands import share_cores; share_cores(); import torch"
    assert spin_count("-c", code, **{name: value}) > 0


def test_the_library_sets_nothing():
    assert spin_count("-c", "import solo_d2.utils.commands, solo_d2.inference") > 0
