"""The suite where Detectron2 is missing: what is skipped, what is named, and that CI refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A plugin that hides Detectron2 from every finder, as on a machine that does not have it.
HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] == "detectron2"
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
TESTS = {
    "test_pure.py": "def test_pure():\n    pass\n",
    "test_module.py": "import detectron2.config\n\ndef test_module():\n    pass\n",
    "test_function.py": """
def test_function():
    try:
        from detectron2.config import get_cfg
    except ImportError:
        pass
""",
    "test_marked.py": """
import pytest

@pytest.mark.detectron2
def test_marked():
    raise AssertionError

@pytest.mark.gpu
def test_gpu():
    import torch
    assert torch.cuda.is_available()
""",
    "test_long.py": """
import pytest

@pytest.mark.reliability
def test_long():
    raise AssertionError
""",
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    for name, text in {**TESTS, "hide.py": HIDE}.items():
        (folder / name).write_text(text)
    source = Path(__file__).with_name("conftest.py")
    (folder / "conftest.py").write_text(source.read_text())
    return folder


def run(folder, *args, ci=""):
    markers = ["-o", "markers=detectron2\ngpu\nreliability", "--strict-markers", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", "-p", "hide", "-p", "no:cacheprovider", *markers]
    path = os.pathsep.join((str(folder), str(Path(__file__).parents[1])))
    environ = {**os.environ, "PYTHONPATH": path, "CI": ci}
    command += ["-ra", f"--rootdir={folder}", *(args or ["."])]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_all_that_needs_detectron2_is_skipped_and_named(suite):
    done = run(suite)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
    assert "error" not in done.stdout
    named = done.stdout.partition("without Detectron2 =")[2]
    for name in ("test_module.py", "test_function.py", "test_marked.py"):
        assert name in named
    assert "test_pure.py" not in named
    assert "long; `make reliability`" in done.stdout


def test_ci_refuses(suite):
    done = run(suite, ci="true")
    assert done.returncode != 0
    assert "Detectron2 is not installed" in done.stderr
    assert "passed" not in done.stdout


def test_make_test_names_what_it_left_out_also_in_ci(suite):
    done = run(suite, "-m", "not detectron2", ci="true")
    assert done.returncode == 0, done.stdout
    assert "1 deselected" in done.stdout
    assert "test_marked.py" in done.stdout.partition("without Detectron2 =")[2]


def test_long_tests_run_where_they_are_asked_for(suite):
    done = run(suite, "-m", "reliability")
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
