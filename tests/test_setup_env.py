"""The worker behind the Makefile: steps, records, failures. Offline, with a machine made up."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from envsetup import commands, install, process, requirements  # noqa: E402
from envsetup.process import SetupError, Venv  # noqa: E402
from envsetup.requirements import Options  # noqa: E402

BASE = ["build tools", "torch", "this project"]
DETECTRON2 = [f"Detectron2 {part}" for part in ("download", "build", "wheel", "requirements")]


class Machine:
    """Stands in for pip, git and the interpreter: notes every step and carries out its effect."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.steps = []
        self.commands = []
        self.failing = set()
        self.unreachable = ""
        self.imports = True
        self.versions = {}
        self.found = {}
        monkeypatch.setattr(Venv, "probe", lambda venv: self.state())
        monkeypatch.setattr(
            Venv, "step", lambda venv, title, command, **_: self.step(title, command)
        )
        monkeypatch.setattr(install, "probe", lambda python, cwd: self.state())
        monkeypatch.setattr(install, "capture", self.capture)
        monkeypatch.setattr(install, "create_venv", self.create_venv)
        monkeypatch.setattr(
            install, "quick_problem", lambda s: self.unreachable if "git+" in s else ""
        )

    def state(self):
        return {"python": [3, 11, 7], "versions": dict(self.versions), "found": dict(self.found)}

    def capture(self, command, *, cwd, timeout=0):
        return (0, "compiled extension: yes\n", "") if self.imports else (1, "", "ImportError: _C")

    def create_venv(self, options, venv):
        venv.python.parent.mkdir(parents=True, exist_ok=True)
        venv.python.touch()

    def add(self, name, version):
        self.versions[name] = version
        self.found[name.replace("-", "_")] = f"/site-packages/{name}"

    def step(self, title, command):
        title = title.split(":")[0]
        self.steps.append(title)
        self.commands.append(command)
        if title in self.failing:
            raise SetupError(f"failed: {title}")
        if title == "torch":
            text = " ".join(command)
            for name in ("torch", "torchvision"):
                pinned = re.search(rf"\b{name}==(\S+)", text)
                self.add(name, pinned.group(1) if pinned else "9.9")
        elif title == "this project":
            self.add("solo-d2", "0.1.0")
        elif title == "Detectron2 download":
            with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "d2.zip", "w") as archive:
                archive.writestr("detectron2-0.6/setup.py", "")
        elif "Detectron2 build" in title:
            wheels = Path(command[command.index("-w") + 1] if "-w" in command else command[-1])
            wheels.mkdir()
            (wheels / "detectron2-0.6-py3-none-any.whl").touch()
        elif title == "Detectron2 requirements":
            self.add("detectron2", "0.6")
        elif title == "panopticapi":
            self.add("panopticapi", "0.1")

    def set_up(self, at_once=False, **choices):
        """Run the set-up and return what is missing and the steps that it took."""
        self.steps.clear()
        self.commands.clear()
        options = Options(venv=self.folder / "venv", **choices)
        return install.set_up(options, at_once=at_once), list(self.steps)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_fresh_set_up_takes_every_step_and_the_second_none(machine):
    assert machine.set_up() == ({}, [*BASE, *DETECTRON2, "panopticapi"])
    assert "torch==2.12.1" in machine.commands[1]
    assert machine.set_up() == ({}, [])


def test_changed_inputs_repeat_the_base_but_not_detectron2(machine, monkeypatch):
    machine.set_up()
    monkeypatch.setattr(install, "input_key", lambda options: "another")
    assert machine.set_up() == ({}, ["build tools", "this project"])
    assert machine.set_up() == ({}, [])


def test_package_that_vanished_is_noticed(machine):
    machine.set_up()
    del machine.found["panopticapi"]
    assert machine.set_up()[1][-1] == "panopticapi"


def test_unrelated_package_changes_nothing(machine):
    machine.set_up()
    machine.versions["ipdb"] = "1.0"
    assert machine.set_up() == ({}, [])


def test_unreachable_detectron2_leaves_the_rest_and_is_tried_again(machine):
    machine.unreachable = "git cannot reach it"
    missing, steps = machine.set_up()
    assert steps == BASE
    assert set(missing) == {"detectron2", "panopticapi"}
    assert "git cannot reach it" in missing["detectron2"]
    assert requirements.SOURCES["detectron2"] in missing["detectron2"]
    machine.unreachable = ""
    assert machine.set_up() == ({}, [*DETECTRON2, "panopticapi"])


def test_demo_says_at_once_that_detectron2_is_missing(machine):
    machine.unreachable = "git cannot reach it"
    with pytest.raises(SetupError, match="git cannot reach it"):
        machine.set_up(at_once=True)
    assert machine.steps == []


def test_demo_needs_no_network_once_detectron2_is_there(machine):
    machine.set_up()
    machine.unreachable = "git cannot reach it"
    assert machine.set_up(at_once=True) == ({}, [])


def test_failed_compilation_falls_back_to_pure_python(machine):
    machine.failing = {"Detectron2 build"}
    missing, steps = machine.set_up()
    assert missing == {}
    assert "Detectron2 build without the extension" in steps


def test_failed_download_is_not_built(machine):
    machine.failing = {"Detectron2 download"}
    missing, steps = machine.set_up()
    assert "failed: Detectron2 download" in missing["detectron2"]
    assert not any("build" in step and "Detectron2" in step for step in steps)


def test_detectron2_that_does_not_import_is_installed_again_then_missing(machine):
    machine.set_up()
    machine.versions["detectron2"] = "0.7"
    machine.imports = False
    options = Options(venv=machine.folder / "venv")
    record = Venv(options.venv).read_record()
    machine.steps.clear()
    why = install.ensure_detectron2(options, Venv(options.venv), record)
    assert "ImportError" in why
    assert machine.steps == DETECTRON2


def test_another_torch_rebuilds_detectron2_and_is_remembered(machine):
    machine.set_up()
    missing, steps = machine.set_up(torch="torch==2.10.0 torchvision==0.25.0")
    assert (missing, steps) == ({}, [*BASE, *DETECTRON2])
    assert machine.versions["torch"] == "2.10.0"
    assert machine.set_up() == ({}, [])
    constraints = (machine.folder / "venv" / "solo_d2_constraints.txt").read_text().splitlines()
    assert "torch==2.10.0" in constraints
    assert not any(line.startswith("sympy") for line in constraints)


def test_the_oldest_versions_are_the_lower_bounds_and_remembered(machine):
    missing, steps = machine.set_up(versions="oldest")
    assert (missing, steps) == ({}, [*BASE, *DETECTRON2, "panopticapi"])
    assert machine.commands[1][-2:] == ["torch==2.6", "torchvision==0.21"]
    constraints = (machine.folder / "venv" / "solo_d2_constraints.txt").read_text().splitlines()
    assert {"torch==2.6", "numpy==1.24", "onnx==1.17", "pytest==8.2"} <= set(constraints)
    assert [line for line in constraints if line.startswith("numpy")] == ["numpy==1.24"]
    assert "setuptools==80.9.0" in constraints
    assert machine.set_up() == ({}, [])
    assert machine.set_up(versions="tested")[1] == [*BASE, *DETECTRON2]
    assert machine.versions["torch"] == "2.12.1"


def test_the_newest_versions_are_bound_by_nothing_but_their_torch(machine):
    assert machine.set_up(versions="newest")[0] == {}
    assert machine.commands[1][-3:] == ["--upgrade", "torch", "torchvision"]
    assert "--upgrade" in machine.commands[2]
    constraints = (machine.folder / "venv" / "solo_d2_constraints.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in constraints}
    assert names == {*requirements.BUILD_TOOLS, "torch", "torchvision"}


def test_torch_may_differ_from_the_oldest(machine):
    machine.set_up(versions="oldest", torch="torch==2.10.0 torchvision==0.25.0")
    assert machine.versions["torch"] == "2.10.0"
    constraints = (machine.folder / "venv" / "solo_d2_constraints.txt").read_text().splitlines()
    assert {"torch==2.10.0", "numpy==1.24"} <= set(constraints)
    assert "torch==2.6" not in constraints


def test_lower_bounds_are_found_for_all_that_the_project_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    start, end = text.index("\ndependencies = ["), text.index("[tool.setuptools")
    asked = [Requirement(a) for a in re.findall(r'"([a-z].*?)"', text[start:end])]
    assert {"torch", "opencv-python", "mkdocs", "pytest-xdist"} <= {each.name for each in asked}
    pins = requirements.oldest_pins()
    for requirement in asked:
        if requirement.name != "setuptools":
            version = pins[requirement.name].removeprefix(f"{requirement.name}==")
            assert f">={version}" in str(requirement.specifier).split(",")


def test_what_was_installed_by_hand_is_kept(machine):
    for name, version in [("torch", "2.11.0"), ("torchvision", "0.26.0"), ("detectron2", "0.6")]:
        machine.add(name, version)
    machine.create_venv(None, Venv(machine.folder / "venv"))
    assert machine.set_up() == ({}, ["build tools", "this project", "panopticapi"])


def test_local_checkout_is_copied_and_its_changes_noticed(machine, tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "detectron2").mkdir(parents=True)
    (checkout / "setup.py").touch()
    module = checkout / "detectron2" / "__init__.py"
    module.touch()
    missing, steps = machine.set_up(detectron2=str(checkout))
    assert (missing, steps) == ({}, [*BASE, *DETECTRON2[1:], "panopticapi"])
    built = machine.commands[3][-1]
    assert not built.startswith(str(checkout))
    assert machine.set_up() == ({}, [])
    os.utime(module, ns=(0, module.stat().st_mtime_ns + 10**9))
    assert machine.set_up() == ({}, DETECTRON2[1:])


def test_wheel_that_has_gone_leaves_what_was_installed(machine, tmp_path):
    wheel = tmp_path / "detectron2-0.6-py3-none-any.whl"
    wheel.touch()
    machine.failing = {"Detectron2 download"}
    assert "detectron2" in machine.set_up(detectron2=str(wheel))[0]
    machine.failing = set()
    machine.set_up(detectron2=str(wheel))
    wheel.unlink()
    assert machine.set_up() == ({}, [])


def test_override_that_fails_does_not_replace_the_earlier_choice(machine):
    machine.set_up()
    machine.failing = {"Detectron2 download"}
    assert "detectron2" in machine.set_up(detectron2="https://example.org/detectron2.zip")[0]
    assert machine.set_up() == ({}, [])


def test_keep_installs_neither_torch_nor_detectron2(machine):
    for name in ("torch", "torchvision", "detectron2", "numpy"):
        machine.add(name, "1.2.3")
    assert machine.set_up(detectron2="keep")[1] == ["build tools", "this project", "panopticapi"]
    constraints = (machine.folder / "venv" / "solo_d2_constraints.txt").read_text().splitlines()
    assert {"torch==1.2.3", "torchvision==1.2.3", "numpy==1.2.3"} <= set(constraints)
    assert machine.set_up() == ({}, [])


def test_keep_in_an_environment_without_detectron2(machine):
    machine.create_venv(None, Venv(machine.folder / "venv"))
    with pytest.raises(SetupError, match="VENV="):
        machine.set_up(detectron2="keep")


def test_keep_and_torch_contradict(machine):
    with pytest.raises(SetupError, match="drop TORCH="):
        machine.set_up(detectron2="keep", torch="torch==2.10.0")


def test_keep_and_other_versions_contradict(machine):
    with pytest.raises(SetupError, match="drop VERSIONS="):
        machine.set_up(detectron2="keep", versions="oldest")


def test_folder_that_is_no_environment_is_left_alone(machine, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.tex").touch()
    with pytest.raises(SetupError, match="no virtual environment"):
        machine.set_up()
    assert machine.steps == []


def test_failed_base_step_ends_the_set_up(machine):
    machine.failing = {"torch"}
    with pytest.raises(SetupError, match="failed: torch"):
        machine.set_up()
    machine.failing = set()
    assert machine.set_up()[1][: len(BASE)] == BASE


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 11, 7), (3, 13, 0)])
def test_supported_python(version):
    process.check_python(version, "python3")


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 18), (3, 14, 0), ()])
def test_other_python_is_refused(version):
    with pytest.raises(SetupError, match=r"python3 .* 3\.10 to 3\.13.*PYTHON="):
        process.check_python(version, "python3")


def test_options_from_environ(tmp_path):
    environ = {
        "VENV": "/envs/solo",
        "TORCH": " torch==2.10.0 ",
        "VERSIONS": "newest",
        "DETECTRON2": "detectron2 @ git+https://example.org/detectron2.git",
        "PANOPTICAPI": str(tmp_path / ".." / tmp_path.name),
        "ARGS": "-k 'one or two'",
    }
    options = Options.from_environ(environ)
    assert options.venv == Path("/envs/solo")
    assert options.torch == "torch==2.10.0"
    assert options.versions == "newest"
    assert options.detectron2 == "git+https://example.org/detectron2.git"
    assert options.panopticapi == str(tmp_path.resolve())
    assert options.args == ("-k", "one or two")
    assert Options.from_environ({}) == Options(venv=ROOT / ".venv")
    with pytest.raises(SetupError, match="VERSIONS=latest: it is tested, oldest or newest"):
        Options.from_environ({"VERSIONS": "latest"})


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("git+https://example.org/d2.git@0123abc", "https://example.org/d2.git"),
        ("git+https://example.org/d2@feature/x#egg=d2", "https://example.org/d2"),
        ("git+ssh://git@example.org/d2.git", "ssh://git@example.org/d2.git"),
        ("git+file:///mirrors/d2@main", "file:///mirrors/d2"),
    ],
)
def test_quick_problem_asks_the_repository(monkeypatch, source, repository):
    asked = []

    def capture(command, **kwargs):
        asked.append(command)
        return 128, "", "fatal: no route"

    monkeypatch.setattr(requirements, "capture", capture)
    monkeypatch.setattr(requirements.shutil, "which", lambda name: "/usr/bin/git")
    problem = requirements.quick_problem(source)
    assert repository in asked[0]
    assert f"cannot reach {repository}" in problem
    assert "no route" in problem


def test_quick_problem_without_git(monkeypatch):
    monkeypatch.setattr(requirements.shutil, "which", lambda name: None)
    assert "git is not installed" in requirements.quick_problem("git+https://example.org/d2.git")


def test_quick_problem_of_local_sources(tmp_path):
    assert "does not exist" in requirements.quick_problem(str(tmp_path / "none"))
    assert "does not exist" in requirements.quick_problem("detectron2-0.6.whl")
    assert "setup.py" in requirements.quick_problem(str(tmp_path))
    (tmp_path / "setup.py").touch()
    assert requirements.quick_problem(str(tmp_path)) == ""
    assert requirements.quick_problem("detectron2==0.6 --find-links /wheels") == ""
    assert requirements.quick_problem("https://example.org/detectron2-0.6.whl") == ""


def test_step_that_fails_shows_the_end_the_log_and_the_hint(tmp_path):
    code = "import sys; print(*range(100), sep='\\n'); print('broken pipe'); sys.exit(3)"
    with pytest.raises(SetupError) as error:
        Venv(tmp_path).step("torch: now", [sys.executable, "-c", code], hint="try TORCH=")
    log = tmp_path / "setup-logs" / "torch.log"
    assert "failed: torch: now" in str(error.value)
    assert "| broken pipe" in str(error.value)
    assert "| 1\n" not in str(error.value)
    assert str(log) in str(error.value)
    assert str(error.value).endswith("try TORCH=")
    assert "\n1\n" in log.read_text()


def test_steps_never_wait_for_input(tmp_path):
    Venv(tmp_path).step("read", [sys.executable, "-c", "assert not __import__('sys').stdin.read()"])


def test_children_do_not_inherit_the_variables(monkeypatch):
    monkeypatch.setenv("TORCH", "torch==1.0")
    monkeypatch.setenv("MAKEFLAGS", "-- TORCH=torch==1.0")
    environ = process.child_environ()
    assert "TORCH" not in environ
    assert "MAKEFLAGS" not in environ
    assert environ["GIT_TERMINAL_PROMPT"] == "0"


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_unreadable_record_counts_as_none(tmp_path, text):
    venv = Venv(tmp_path)
    (tmp_path / "solo_d2_setup.json").write_text(text)
    assert venv.read_record() == {}
    venv.write_record({"key": "1"})
    assert json.loads((tmp_path / "solo_d2_setup.json").read_text()) == {"key": "1"}


def test_probe_of_this_interpreter():
    state = process.probe(sys.executable, ROOT)
    assert state["python"] == list(sys.version_info[:3])
    assert "pytest" in state["versions"]
    assert process.probe("/no/such/python", ROOT)["python"] == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_pin_every_package_once(python):
    for name, lines in requirements.constraint_lines().items():
        pins = [Requirement(line) for line in lines]
        pins = [p for p in pins if not p.marker or p.marker.evaluate({"python_version": python})]
        assert len(pins) <= 1, name
        assert all(str(pin.specifier).startswith("==") for pin in pins), name


def test_constraints_satisfy_what_the_project_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:dependencies|dev) = \[(.*?)\]\n", text, re.MULTILINE | re.DOTALL)
    asked = [Requirement(a) for block in blocks for a in re.findall(r'"([^"]+)"', block)]
    assert {"torch", "numpy", "setuptools", "pytest"} <= {requirement.name for requirement in asked}
    for requirement in asked:
        for line in requirements.constraint_lines()[requirement.name]:
            version = str(Requirement(line).specifier).removeprefix("==")
            assert requirement.specifier.contains(version), line


def test_tools_are_pinned_in_the_hooks(monkeypatch, tmp_path):
    pins = requirements.pinned_tools()
    assert [pin.partition("==")[0] for pin in pins] == ["ruff", "mypy"]
    for pin in pins:
        hooks = (ROOT / ".pre-commit-config.yaml").read_text()
        assert f"rev: v{pin.partition('==')[2]}\n" in hooks
    (tmp_path / ".pre-commit-config.yaml").write_text("repos: []\n")
    monkeypatch.setattr(requirements, "ROOT", tmp_path)
    with pytest.raises(SetupError, match="ruff, mypy"):
        requirements.pinned_tools()


def test_pure_wheel_leaves_the_extension_out(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    (tmp_path / "vision.c").write_text("this does not compile")
    (tmp_path / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        "setup(name='detectron2', version='0.6', packages=['detectron2'],\n"
        "      ext_modules=[Extension('detectron2._C', ['vision.c'])])\n"
    )
    command = [sys.executable, "-c", install.PURE_WHEEL, str(tmp_path / "wheels")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    wheel = next((tmp_path / "wheels").glob("detectron2-0.6-*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "detectron2/__init__.py" in zipfile.ZipFile(wheel).namelist()


@pytest.fixture
def calls(monkeypatch):
    """Record what would run in the environment; `calls.code` is what it returns."""

    class Calls(list):
        code = 0

        def __call__(self, command):
            self.append(list(command))
            return self.code

    recorder = Calls()
    monkeypatch.setattr(commands, "call", recorder)
    monkeypatch.delenv("CI", raising=False)
    return recorder


def run(monkeypatch, command, missing, **variables):
    monkeypatch.setattr(commands, "set_up", lambda options, at_once: missing)
    environ = {"VENV": "/envs/solo", "PYTHON": sys.executable, **variables}
    return commands.main([command], environ)


@pytest.mark.parametrize("code", [0, 1, 5])
def test_make_test_returns_what_pytest_returns(monkeypatch, calls, code):
    calls.code = code
    assert run(monkeypatch, "test", {}, ARGS="-x") == code
    workers = ["-n", str(min(os.cpu_count(), 8)), "--dist", "loadfile"]
    assert calls == [["/envs/solo/bin/python", "-m", "pytest", *workers, "-x"]]


def test_make_test_without_detectron2_runs_the_rest_and_fails(monkeypatch, calls, capsys):
    assert run(monkeypatch, "test", {"detectron2": "no way there"}) == 1
    assert calls[0][-2:] == ["-m", "not detectron2"]
    errors = capsys.readouterr().err
    assert "FAILED" in errors
    assert "no way there" in errors
    assert "make test DETECTRON2=/path/to/detectron2" in errors


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_make_test_without_panopticapi_fails_in_ci_only(monkeypatch, calls, ci, code):
    monkeypatch.setenv("CI", ci)
    assert run(monkeypatch, "test", {"panopticapi": "no way there"}) == code
    assert "-m" not in calls[0][3:]


def test_make_reliability_runs_the_long_tests_alone(monkeypatch, calls):
    assert run(monkeypatch, "reliability", {"detectron2": "no way there"}) == 1
    assert calls == []
    assert run(monkeypatch, "reliability", {}, ARGS="-x") == 0
    assert calls == [["/envs/solo/bin/python", "-m", "pytest", "-m", "reliability", "-x"]]


def test_make_demo(monkeypatch, calls, capsys):
    assert run(monkeypatch, "demo", {"detectron2": "no way there"}) == 1
    assert calls == []
    assert "make demo DETECTRON2=/path/to/detectron2" in capsys.readouterr().err
    assert run(monkeypatch, "demo", {}) == 0
    assert calls == [["/envs/solo/bin/python", "tools/quickstart.py"]]


def test_make_lint_runs_all_three_and_keeps_the_failure(monkeypatch, calls):
    calls.code = 1
    assert run(monkeypatch, "lint", {"detectron2": "no way there"}) == 1
    assert [call[2:4] for call in calls] == [["ruff", "format"], ["ruff", "check"], ["mypy"]]


def test_error_is_printed_with_what_helps(monkeypatch, capsys):
    def fail(options, at_once):
        raise SetupError("Detectron2 is needed for this, and missing")

    monkeypatch.setattr(commands, "set_up", fail)
    assert commands.main(["demo"], {"PYTHON": sys.executable}) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("make demo: Detectron2 is needed")
    assert "DETECTRON2=keep" in errors


def test_unknown_command(capsys):
    assert commands.main(["tset"], {}) == 2
    assert "make test" in capsys.readouterr().out


def test_old_interpreter_is_refused_at_the_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(commands.sys, "version_info", (3, 9, 18))
    assert commands.main(["test"], {"VENV": str(tmp_path / "venv")}) == 1
    assert "Python 3.9.18" in capsys.readouterr().err


def test_the_command_itself():
    command = [sys.executable, str(ROOT / "tools" / "setup_env.py"), "help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "make test" in done.stdout
