"""The Makefile's targets.

The variables come from the environment; `HELP` explains them. One that is not given means "what
this environment was made with", and only then the default.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from envsetup.install import set_up
from envsetup.process import ROOT, SetupError, Venv, check_python, child_environ
from envsetup.requirements import DETECTRON2_COMMIT, DETECTRON2_REPOSITORY, KEEP, SOURCES, Options

HELP = f"""make setup         the virtual environment: torch, Detectron2, panopticapi, this project
make test          set-up, then pytest
make reliability   set-up, then the long tests alone: load, fuzzing, killing
make demo          set-up, then train, evaluate and show SOLOv2 on generated images (CPU: minutes)
make docs          set-up, then build the documentation's site into build/site
make lint          set-up, then ruff format --check, ruff check, mypy
make format        set-up, then let ruff rewrite the files
make clean         remove caches (never the environment or anything trained)

Variables (make test TORCH="torch==2.10.0 torchvision==0.25.0"):
VENV          the environment's folder; default .venv
PYTHON        the interpreter it is made with, 3.10 to 3.13; default python3
VERSIONS      `tested`: those of constraints.txt, the default; `oldest`: the lower bounds of
              pyproject.toml, which Python 3.10 and 3.11 can run; `newest`: what pip finds
TORCH         pip arguments that install torch and torchvision: versions, wheels, --index-url ...;
              default: the two that VERSIONS says
DETECTRON2    a checkout, a wheel or any pip requirement, or `{KEEP}` for the Detectron2 and torch
              that PYTHON can import; default: one that the environment has, else
              {SOURCES["detectron2"]}
PANOPTICAPI   the same for panopticapi
ARGS          further arguments for pytest (make test, make reliability), or the quickstart
              (make demo)"""
DETECTRON2_HELP = f"""Detectron2 can also come from another place (see `make help`):
  make {{command}} DETECTRON2=/path/to/detectron2           a checkout of its repository
  make {{command}} DETECTRON2=/path/to/detectron2-0.6.whl   a wheel
  make {{command}} DETECTRON2=git+https://MIRROR/detectron2.git@{DETECTRON2_COMMIT}
  make {{command}} DETECTRON2={DETECTRON2_REPOSITORY}/archive/{DETECTRON2_COMMIT}.zip   (no git)
  make {{command}} PYTHON=/path/to/python DETECTRON2={KEEP} VENV=.venv-keep   what PYTHON has"""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Entry point: `setup_env.py setup|test|reliability|demo|docs|lint|format|clean|help`."""
    command = argv[0] if argv else "help"
    if command == "clean":
        return clean()
    if command not in ("setup", "test", "reliability", "demo", "docs", "lint", "format"):
        print(HELP)
        return 0 if command == "help" else 2
    try:
        options = Options.from_environ(environ)
        if not Venv(options.venv).python.exists() and not options.python:
            check_python(sys.version_info[:3], sys.executable)
        return run(command, options)
    except SetupError as error:
        print(f"make {command}: {error}", file=sys.stderr)
        if "etectron2" in str(error):
            print(DETECTRON2_HELP.format(command=command), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(command: str, options: Options) -> int:
    """Carry out one of the Makefile's targets and return the exit code."""
    missing = set_up(options, at_once=command == "demo")
    if command == "test":
        return run_tests(options, missing)
    if missing:
        print(explain(missing, command), file=sys.stderr)
    python = str(Venv(options.venv).python)
    if command == "lint":
        return run_lint(options)
    if command == "format":
        fixed = call([python, "-m", "ruff", "check", "--fix-only", "."])
        return fixed or call([python, "-m", "ruff", "format", "."])
    if command == "docs":
        return call([python, "-m", "mkdocs", "build", "--strict"])
    if "detectron2" in missing:
        return 1
    if command == "reliability":
        # One after another: they look at memory and time.
        return call([python, "-m", "pytest", "-m", "reliability", *options.args])
    return call([python, "tools/quickstart.py", *options.args]) if command == "demo" else 0


def run_tests(options: Options, missing: Mapping[str, str]) -> int:
    """Run pytest; without Detectron2 only what needs torch alone, and then fail."""
    command = [str(Venv(options.venv).python), "-m", "pytest"]
    if "detectron2" not in missing:
        # A worker for each core; the tests of a file share what is made once for them.
        workers = ["-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile"]
        code = call([*command, *workers, *options.args])
        if missing:
            print(explain(missing, "test"), file=sys.stderr)
        return code or int(bool(missing and os.environ.get("CI")))
    code = call([*command, *options.args, "-m", "not detectron2"])
    print(
        "\nFAILED: only the tests that need torch alone ran. Models, data, training and evaluation "
        f"(the marker `detectron2`, listed above) did not.\n{explain(missing, 'test')}",
        file=sys.stderr,
    )
    return code or 1


def run_lint(options: Options) -> int:
    """Check format, lint and types; all three, whatever the first ones say."""
    python = str(Venv(options.venv).python)
    checks = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])
    codes = []
    for check in checks:
        print(f"==> {' '.join(check)}", flush=True)
        codes.append(call([python, "-m", *check]))
    return max(codes)


def clean() -> int:
    """Remove caches; nothing that was trained, downloaded or installed."""
    for name in (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "build"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for top in ("solo_d2", "tests", "tools", "demo"):
        for cache in list((ROOT / top).rglob("__pycache__")):
            shutil.rmtree(cache, ignore_errors=True)
    return 0


def explain(missing: Mapping[str, str], command: str) -> str:
    """Return why parts are missing and what would provide them."""
    text = [f"{name} is missing: {why}" for name, why in missing.items()]
    if "detectron2" in missing:
        text.append(DETECTRON2_HELP.format(command=command))
    if "panopticapi" in missing:
        text.append("panopticapi: PANOPTICAPI=/path/to/checkout (needed for panoptic evaluation)")
    return "\n".join(text)


def call(command: Sequence[str]) -> int:
    """Run a command in the project's folder with its output on this terminal."""
    return subprocess.run(command, cwd=ROOT, env=child_environ(), check=False).returncode
