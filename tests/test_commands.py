"""What commands set for their own process, and that the library sets nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def run(*command, **variables):
    environ = {key: value for key, value in os.environ.items() if key not in WAITING}
    environ |= {"OMP_DISPLAY_ENV": "true", **variables}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("torch's OpenMP does not show its settings")
    return "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


@pytest.mark.detectron2
def test_threads_of_a_training_sleep_while_they_wait():
    assert run("train_net.py", "--help")


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "200")],
)
def test_what_the_user_has_set_stays(name, value):
    code = "from solo_d2.commands import share_cores; share_cores(); import torch"
    assert not run("-c", code, **{name: value})


def test_the_library_sets_nothing():
    code = """
import os, signal, solo_d2.commands, torch
before = dict(os.environ), torch.get_num_threads()
import solo_d2.ops.threads, solo_d2.inference
assert before == (dict(os.environ), torch.get_num_threads())
"""
    assert not run("-c", code)
