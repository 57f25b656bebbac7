"""What every test relies on: Triton's interpreter, thread counts, isolation, skips with a reason.

Catalogs, loggers and the environment are restored after each test and each module, so that the
order of tests does not matter.

Without Detectron2 the tests that need it are skipped, in whichever way they come to it: by the
marker `detectron2`, or by an import in the test module or in what it imports. In CI its absence is
an error instead.
"""

import gc
import importlib.util
import logging
import os
import sys

# Before torch and any kernel: matplotlib without a display, and kernels on the CPU (below).
os.environ.setdefault("MPLBACKEND", "Agg")

from solo_d2.utils.commands import share_cores

share_cores()

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.isolation import restored  # noqa: E402

pytest_plugins = ["tests.export.exported"]

gc.disable()  # until all tests are collected

HAS_GPU = torch.cuda.is_available()
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
NEEDS_DETECTRON2 = "Detectron2 is not installed (see `make help`)"
# Files that take longest start first, or one worker still runs them when the others have ended.
LONGEST_FILES = (
    "export/test_programs.py",
    "engine/test_several_processes.py",
    "config/test_configs.py",
    "docs/test_extending.py",
    "demo/test_tutorial.py",
    "demo/test_app.py",
    "engine/test_determinism.py",
    "engine/test_trainer.py",
    "tools/benchmarks/test_inference.py",
    "tools/ablations/test_tables.py",
    "test_wheel.py",
)
LONG = "long; `make reliability` or `pytest -m reliability` runs it"

if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


class _SkipDetectron2:
    """Import hook that turns an import of a missing Detectron2 into a skip.

    Last in the queue, so it sees only what nobody else found. The outcome of pytest is no
    Exception: `except ImportError` in the code under test does not swallow it.
    """

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "detectron2":
            pytest.skip(NEEDS_DETECTRON2, allow_module_level=True)


def pytest_configure(config):
    """Divide the cores among the workers, and see to what is missing."""
    config.option.loadscopereorder = False  # files with many tests do not take longest
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = int(os.environ.get("OMP_NUM_THREADS") or min(_cores(), 8))
    torch.set_num_threads(max(1, threads // workers))
    if not HAS_DETECTRON2:
        # make test says `not detectron2` only where it reports the failure itself.
        if os.environ.get("CI") and config.option.markexpr != "not detectron2":
            raise pytest.UsageError(f"{NEEDS_DETECTRON2}, and CI skips no test for that")
        sys.meta_path.append(_SkipDetectron2())


def pytest_collection_modifyitems(config, items):
    """Order the tests; skip what this machine cannot run, or is only for `make reliability`."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST_FILES))
    long_ones_too = "reliability" in config.option.markexpr
    for item in items:
        if item.get_closest_marker("reliability") and not long_ones_too:
            item.add_marker(pytest.mark.skip(reason=LONG))
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("export") and torch.__version__ < "2.7":
            item.add_marker(pytest.mark.skip(reason="export needs torch 2.7"))
        if item.get_closest_marker("detectron2") and not HAS_DETECTRON2:
            item.add_marker(pytest.mark.skip(reason=NEEDS_DETECTRON2))


def pytest_collection_finish():
    """Make tests faster once everything is imported.

    Later garbage collections leave out what was imported. PyYAML reads and writes a config in C,
    ten times as fast. Detectron2's `default_setup` parses a CfgNode as YAML for each of four keys,
    half a second for each training; it reads them instead.
    """
    gc.enable()
    gc.freeze()
    if (yaml := sys.modules.get("yaml")) and yaml.__with_libyaml__:
        yaml.SafeLoader, yaml.SafeDumper = yaml.CSafeLoader, yaml.CSafeDumper
    if defaults := sys.modules.get("detectron2.engine.defaults"):
        search = defaults._try_get_key

        def find(cfg, *keys, default=None):
            if isinstance(cfg, defaults.CfgNode):
                return next((cfg[key] for key in keys if key in cfg), default)
            return search(cfg, *keys, default=default)

        defaults._try_get_key = find


@pytest.fixture(scope="module", autouse=True)
def _isolated_module():
    with restored():
        yield


@pytest.fixture(autouse=True)
def _isolated_test(_isolated_module):
    with restored():
        logging.getLogger("solo_d2").propagate = True
        yield


_not_run = set()


def pytest_deselected(items):
    """Remember the files with tests that were left out for want of Detectron2."""
    if not HAS_DETECTRON2:
        _not_run.update(
            item.nodeid.split("::")[0] for item in items if item.get_closest_marker("detectron2")
        )


def pytest_terminal_summary(terminalreporter):
    """Name the files that did not run, or only in part, without Detectron2."""
    for report in terminalreporter.stats.get("skipped", []):
        if NEEDS_DETECTRON2 in str(report.longrepr):
            _not_run.add(report.nodeid.split("::")[0])
    if _not_run:
        terminalreporter.section("not run, or in part, without Detectron2")
        for name in sorted(_not_run):
            terminalreporter.line(name)


def _cores():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
