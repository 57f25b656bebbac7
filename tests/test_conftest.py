"""The suite where Detectron2 is missing: what is skipped, what is named, and that CI refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    # A plugin that hides Detectron2 from every finder, as on a machine that does not have it.
    "hide.py": """
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
""",
    # As much of torch as conftest.py uses; torch itself takes seconds to import.
    "torch.py": """
class cuda:
    is_available = staticmethod(lambda: False)

__version__ = "2.10"
set_num_threads = int
""",
    "conftest.py": Path(__file__).with_name("conftest.py").read_text(),
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
def test_detectron2():
    raise AssertionError

@pytest.mark.gpu
def test_gpu():
    raise AssertionError
""",
    "test_long.py": """
import pytest

@pytest.mark.reliability
def test_long():
    raise AssertionError
""",
}


@pytest.fixture
def run(tmp_path):
    """Runs pytest on a suite like this one."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def run(*args, ci=""):
        markers = "markers=detectron2\ngpu\nreliability"
        command = [sys.executable, "-m", "pytest", "-p", "hide", "-o", markers, "--strict-markers"]
        command += ["-c", os.devnull, f"--rootdir={tmp_path}", "-ra", *args, "."]
        path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
        environ = {**os.environ, "PYTHONPATH": path, "CI": ci}
        environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)

    return run


NAMED = ["test_function.py", "test_marked.py", "test_module.py"]


@pytest.mark.parametrize(
    ("args", "ci", "counts", "named"),
    [
        ((), "", "1 passed, 5 skipped in", NAMED),
        # make test says so where it has reported the failure itself.
        (("-m", "not detectron2"), "true", "1 passed, 4 skipped, 1 deselected in", NAMED),
        (("-m", "reliability"), "", "1 failed, 1 skipped, 4 deselected in", NAMED[1:]),
    ],
)
def test_what_needs_detectron2_or_is_long_is_skipped_and_named(run, args, ci, counts, named):
    done = run(*args, ci=ci)
    assert counts in done.stdout
    assert [line for line in done.stdout.splitlines() if line in FILES] == named


def test_ci_refuses(run):
    done = run(ci="true")
    assert done.returncode != 0
    assert "Detectron2 is not installed" in done.stderr
    assert "passed" not in done.stdout
