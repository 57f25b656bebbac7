"""Set-up of the environment: which steps run, with which versions."""

import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import setup_env

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that runs the set-up with variables and returns its steps."""
    steps = []

    def run(command, remedy, **environ):
        command = [str(part) for part in command]
        steps.append((command, remedy, environ))
        if "venv" in command:
            folder = Path(command[-1])
            (folder / "lib/python3/site-packages").mkdir(parents=True, exist_ok=True)
            (folder / "pyvenv.cfg").touch()

    def set_up(**variables):
        steps.clear()
        for name in (*setup_env.DEFAULTS, "VENV"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"VENV": str(tmp_path / "venv"), **variables}.items():
            monkeypatch.setenv(name, value)
        setup_env.main()
        return list(steps)

    monkeypatch.setattr(setup_env, "run", run)
    return set_up


def joined(steps):
    return [" ".join(command) for command, _, _ in steps]


def test_first_set_up_takes_every_step_and_the_second_none(machine):
    lines = joined(machine())
    sources = [setup_env.DEFAULTS[name] for name in ("DETECTRON2", "PANOPTICAPI")]
    ends = ["/venv", "ninja", "torch torchvision", *sources, ""]
    assert len(lines) == len(ends)
    assert all(line.endswith(end) for line, end in zip(lines, ends, strict=True))
    assert re.search(r"\[dev\] detectron2 ruff==[\d.]+ mypy==[\d.]+ codespell==[\d.]+$", lines[-1])
    assert machine() == []


@pytest.mark.parametrize("name", ["TORCH", "DETECTRON2", "PANOPTICAPI"])
def test_variables_name_what_is_installed_and_are_remembered(machine, name, tmp_path):
    assert any(line.endswith(" a.whl") for line in joined(machine(**{name: "a.whl"})))
    assert machine() == []
    assert any(line.endswith(" b.whl") for line in joined(machine(**{name: "b.whl"})))
    assert json.loads((tmp_path / "venv/solo_d2.json").read_text())[name] == "b.whl"


def test_the_extension_is_built_on_request(machine):
    built = [environ for command, _, environ in machine() if "--no-deps" in command]
    assert list(built[0]) == ["PYTHONPATH"]
    built = [
        environ for command, _, environ in machine(DETECTRON2_EXT="1") if "--no-deps" in command
    ]
    assert built == [{}]


def test_no_extension_is_built_by_default(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "vision.c").write_text("this does not compile")
    (tmp_path / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        "setup(name='package', version='1', packages=['package'],\n"
        "      ext_modules=[Extension('package._C', ['vision.c'])])\n"
    )
    (tmp_path / "start").mkdir()
    (tmp_path / "start/sitecustomize.py").write_text(setup_env.NO_EXTENSIONS)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    environ = {"PYTHONPATH": str(tmp_path / "start"), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, env=environ, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == "package-1-py3-none-any.whl"
    assert "package/__init__.py" in zipfile.ZipFile(wheel).namelist()


def test_a_step_that_fails_is_taken_again(machine, monkeypatch, tmp_path):
    machine(TORCH="a.whl")
    work = setup_env.run

    def fail(command, remedy, **environ):
        sys.exit(remedy)

    monkeypatch.setattr(setup_env, "run", fail)
    with pytest.raises(SystemExit):
        machine(TORCH="b.whl")
    monkeypatch.setattr(setup_env, "run", work)
    assert any(line.endswith(" a.whl") for line in joined(machine()))


def test_a_failed_step_names_the_remedy():
    with pytest.raises(SystemExit, match="code 3.*TORCH="):
        setup_env.run([sys.executable, "-c", "raise SystemExit(3)"], "TORCH=")


def test_keep_installs_neither_torch_nor_detectron2(machine, tmp_path):
    lines = joined(machine(DETECTRON2="keep"))
    assert not any(line.endswith(("torchvision", "detectron2.git")) for line in lines)
    pins = (tmp_path / "venv/constraints.txt").read_text().splitlines()
    installed = importlib.metadata.version("torch")
    assert f"torch=={installed}" in pins
    assert (tmp_path / "venv/lib/python3/site-packages/solo_d2_keep.pth").is_file()


def test_what_is_refused(machine, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(SystemExit, match="VENV="):
        machine(VENV=str(tmp_path / "mine"))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["file"]
    with pytest.raises(SystemExit, match="VERSIONS=old"):
        machine(VERSIONS="old")
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match="PYTHON="):
        machine()


def requirements():
    text = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:dependencies|dev) = \[(.*?)\]\n", text, re.MULTILINE | re.DOTALL)
    return [Requirement(line) for block in blocks for line in re.findall(r'"([^"]+)"', block)]


def test_tested_versions_satisfy_the_project():
    pins = [Requirement(line) for line in setup_env.constraints("tested")]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        marks = [p.marker is None or p.marker.evaluate({"python_version": python}) for p in pins]
        names = [pin.name for pin, is_used in zip(pins, marks, strict=True) if is_used]
        assert len(set(names)) == len(names)
    assert {"torch", "numpy", "setuptools", "pytest"} <= {pin.name for pin in pins}
    for wanted in requirements():
        versions = [str(pin.specifier).lstrip("=") for pin in pins if pin.name == wanted.name]
        assert versions, wanted
        assert all(wanted.specifier.contains(version) for version in versions), wanted


def test_oldest_versions_are_the_lower_bounds():
    lines = setup_env.constraints("oldest")
    bounds = [r for r in requirements() if r.name not in setup_env.BUILD_TOOLS]
    expected = {f"{r.name}=={s.version}" for r in bounds for s in r.specifier if s.operator == ">="}
    assert expected <= set(lines)
    assert len(bounds) == len({r.name for r in bounds} & {line.split("==")[0] for line in lines})
    newest = {line.split("==")[0] for line in setup_env.constraints("newest")}
    assert newest == set(setup_env.BUILD_TOOLS)


@pytest.mark.parametrize("versions", ["tested", "oldest", "newest"])
def test_torch_lifts_what_depends_on_it(versions):
    names = {line.split("==")[0] for line in setup_env.constraints(versions, "torch==2.10.0")}
    assert not names & setup_env.TORCH_PACKAGES
    assert names >= {"setuptools"}


def test_makefile_help_names_every_variable():
    text = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in (*setup_env.DEFAULTS, "VENV", "PYTHON", "ARGS"):
        assert re.search(rf"^{name} ", text.stdout, re.MULTILINE)
