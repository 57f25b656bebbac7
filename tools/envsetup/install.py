"""The steps of the set-up, in their order."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envsetup.process import ROOT, SetupError, Venv, capture, check_python, dotted, locked, probe
from envsetup.requirements import (
    BUILD_TOOLS,
    KEEP,
    NEWEST,
    SOURCES,
    TESTED,
    TORCH_PACKAGES,
    Options,
    effective_constraints,
    essential,
    fingerprint,
    input_key,
    pinned_tools,
    quick_problem,
    remembered,
    tested_torch,
    torch_request,
)

DESCRIBE = """
import json, pathlib, sys, sysconfig
config = pathlib.Path(sys.prefix, "pyvenv.cfg")
is_venv = config.exists()
shows_system = not is_venv or "include-system-site-packages = true" in config.read_text()
packages = sysconfig.get_path("purelib")
print(json.dumps({"is_venv": is_venv, "shows_system": shows_system, "packages": packages}))
"""
IMPORT_BASE = """
import torch, torchvision, numpy, cv2
import pycocotools.mask
"""
IMPORT_DETECTRON2 = """
import detectron2.layers, detectron2.model_zoo
try:
    from detectron2 import _C
    print("compiled extension: yes")
except ImportError:
    print("compiled extension: no")
"""

# Detectron2's setup.py asks for a C++ extension, but its layers do without at run time.
PURE_WHEEL = """
import runpy, setuptools, sys
original = setuptools.setup
setuptools.setup = lambda **kwargs: original(**{**kwargs, "ext_modules": []})
sys.argv = ["setup.py", "-q", "bdist_wheel", "-d", sys.argv[1]]
runpy.run_path("setup.py", run_name="__main__")
"""


def set_up(options: Options, *, at_once: bool = False) -> dict[str, str]:
    """Create the environment or bring it up to date.

    Args:
        options: what was asked for.
        at_once: raise before anything is installed if Detectron2 cannot be had.

    Returns:
        Why parts are missing, by name: "detectron2", "panopticapi".
    """
    start = time.monotonic()
    venv = Venv(options.venv)
    record = venv.read_record()
    options = remembered(options, record)
    check_request(options, venv)
    there = venv.python.exists() and "detectron2" in venv.probe()["found"]
    if at_once and options.detectron2 != KEEP and not there:
        problem = quick_problem(options.detectron2 or SOURCES["detectron2"])
        if problem:
            raise SetupError(f"Detectron2 is needed for this, and missing: {problem}")
    with locked(venv):
        create_venv(options, venv)
        key = input_key(options)
        if record.get("key") != key or record.get("state") != essential(venv.probe()):
            install_base(options, venv)
        missing = {
            "detectron2": ensure_detectron2(options, venv, record),
            "panopticapi": ensure_panopticapi(options, venv, record),
        }
        choices = {name: getattr(options, name) for name in ("versions", "torch", *SOURCES)}
        before = record.get("choices", {})
        choices.update({name: before.get(name, "") for name, why in missing.items() if why})
        state = venv.probe()
        record.update(key=key, choices=choices, state=essential(state))
        venv.write_record(record)
    print(f"{summary(venv, state, record)} ({time.monotonic() - start:.1f} s)", flush=True)
    return {name: why for name, why in missing.items() if why}


def check_request(options: Options, venv: Venv) -> None:
    """Raise if what is asked for contradicts itself or the environment that is there."""
    if options.detectron2 == KEEP and options.torch:
        raise SetupError(f"DETECTRON2={KEEP} keeps the interpreter's torch as well: drop TORCH=")
    if options.detectron2 == KEEP and options.versions not in ("", TESTED):
        raise SetupError(f"DETECTRON2={KEEP} keeps what the interpreter has: drop VERSIONS=")
    if not venv.python.exists():
        ours = venv.lock.exists() or (venv.folder / "pyvenv.cfg").exists()
        if venv.folder.exists() and not ours and any(venv.folder.iterdir()):
            raise SetupError(f"{venv.folder} is no virtual environment: name another by VENV=")
        return
    state = venv.probe()
    check_python(state["python"], str(venv.python))
    if options.python:
        asked = probe(options.python, ROOT)["python"]
        check_python(asked, options.python)
        if asked[:2] != state["python"][:2]:
            raise SetupError(
                f"{venv.folder} was made with Python {dotted(state['python'])}, and "
                f"{options.python} is {dotted(asked)}: remove it or name another by VENV="
            )
    if options.detectron2 == KEEP and "detectron2" not in state["found"]:
        raise SetupError(
            f"{venv.folder} was made without the packages of its interpreter, so there is no "
            f"Detectron2 in it to keep: remove it or name another by VENV="
        )


def create_venv(options: Options, venv: Venv) -> None:
    """Make the virtual environment unless it is there."""
    if venv.python.exists() and capture(venv.pip("--version"), cwd=ROOT)[0] == 0:
        return
    python = options.python or sys.executable
    check_python(probe(python, ROOT)["python"], python)
    keep = options.detectron2 == KEEP
    if keep:
        code = "import torch, torchvision, detectron2.layers"
        failed, _, errors = capture([python, "-c", code], cwd=ROOT)
        if failed:
            raise SetupError(
                f"DETECTRON2={KEEP}: {python} cannot import torch, torchvision and detectron2:\n"
                f"{errors.strip()}\nName the interpreter that can by PYTHON="
            )
    parent = describe_python(python) if keep else {"shows_system": False, "is_venv": False}
    command = [python, "-m", "venv", str(venv.folder)]
    if parent["shows_system"]:
        command.append("--system-site-packages")
    hint = "On Debian and Ubuntu the module is a package of its own: apt install python3-venv"
    venv.step(f"virtual environment: {venv.folder}", command, hint=hint)
    if parent["is_venv"]:
        # What venv shows on its own are the packages of the base interpreter.
        own = describe_python(str(venv.python))["packages"]
        link = f"import site; site.addsitedir({parent['packages']!r})\n"
        (Path(own) / "solo_d2_kept_packages.pth").write_text(link)


def describe_python(python: str) -> dict[str, Any]:
    """Return where an interpreter keeps its packages and which others it sees."""
    code, output, errors = capture([python, "-c", DESCRIBE], cwd=ROOT)
    if code != 0:
        raise SetupError(f"{python} does not run:\n{errors.strip()}")
    parent: dict[str, Any] = json.loads(output)
    return parent


def install_base(options: Options, venv: Venv) -> None:
    """Install the build tools, torch, this project and what develops it."""
    state = venv.probe()
    constrained = ("install", "-c", str(venv.constraints))
    venv.constraints.write_text(effective_constraints(options, state))
    venv.step("build tools", venv.pip(*constrained, *BUILD_TOOLS))

    tested = tested_torch()
    there = [f"{n}=={state['versions'].get(n)}" for n in TORCH_PACKAGES if n in state["found"]]
    chosen = torch_request(options)
    if chosen or len(there) < len(TORCH_PACKAGES):
        chosen = chosen or tested
        venv.constraints.write_text(effective_constraints(options, {"versions": {}}))
        hint = 'Other builds by TORCH=, like make test TORCH="torch==2.10.0 torchvision==0.25.0"'
        venv.step(f"torch: {' '.join(chosen)}", venv.pip(*constrained, *chosen), hint=hint)
        venv.constraints.write_text(effective_constraints(options, venv.probe()))
    elif there != tested:
        print(f"    kept: {' '.join(there)} (tested: {' '.join(tested)}; TORCH= chooses)")

    editable = ("--no-build-isolation", "-e", f"{ROOT}[dev]")
    upgrade = ("--upgrade", "--upgrade-strategy", "eager") if options.versions == NEWEST else ()
    venv.step("this project", venv.pip(*constrained, *upgrade, *editable, *pinned_tools()))
    code, _, errors = capture([str(venv.python), "-c", IMPORT_BASE], cwd=venv.folder, timeout=600)
    if code != 0:
        hint = "libGL or libgthread: apt install libgl1 libglib2.0-0. Another torch: see TORCH="
        raise SetupError(f"what was installed does not import:\n{errors.strip()[-1500:]}\n{hint}")


def ensure_detectron2(options: Options, venv: Venv, record: dict[str, Any]) -> str:
    """Have Detectron2 in the environment, from where it was asked for.

    Returns:
        "" when it is there, else why it is not.
    """
    state = venv.probe()
    source = options.detectron2
    built = record.get("detectron2", {})
    now = {"source": fingerprint(source), "torch": state["versions"].get("torch")}
    if "detectron2" in state["found"]:
        if built == now and record.get("state") == essential(state):
            return ""
        # One that was here before any record is kept unless another is asked for.
        kept = built == now or source == KEEP or not (built or source)
        if kept and (not verify_detectron2(venv, record) or source == KEEP):
            record["detectron2"] = now
            return ""
    try:
        install_detectron2(source or SOURCES["detectron2"], venv)
    except SetupError as error:
        return f"{error}\n(asked for: {source or SOURCES['detectron2']})"
    record["detectron2"] = now
    return verify_detectron2(venv, record)


def install_detectron2(source: str, venv: Venv) -> None:
    """Install Detectron2 and what it needs from a checkout, a wheel or a pip requirement."""
    problem = quick_problem(source)
    if problem:
        raise SetupError(problem)
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        wheel = fetch_source(source, venv, Path(name))
        if wheel.is_dir():
            wheel = build_wheel(wheel, venv, Path(name))
        install = venv.pip("install", "-c", str(venv.constraints), str(wheel))
        venv.step("Detectron2 wheel", [*install, "--no-deps", "--force-reinstall"])
        venv.step("Detectron2 requirements", install)


def fetch_source(source: str, venv: Venv, folder: Path) -> Path:
    """Bring Detectron2's source or wheel into a folder.

    Returns:
        A wheel, or a folder with a setup.py that may be written to.
    """
    path = Path(source)
    target = folder / "source"
    if path.is_dir():
        unwanted = shutil.ignore_patterns(".git", "build", "*.egg-info", "*.so", "__pycache__")
        shutil.copytree(path, target, ignore=unwanted, symlinks=True)
        return target
    tokens = [source] if path.exists() else shlex.split(source)
    flags = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "-d", str(folder))
    venv.step(f"Detectron2 download: {source}", venv.pip("download", *flags, *tokens))
    archive = next(file for file in folder.iterdir() if file.is_file())
    if archive.suffix == ".whl":
        return archive
    shutil.unpack_archive(str(archive), str(target))
    return min(target.rglob("setup.py"), key=lambda file: len(file.parts)).parent


def build_wheel(source: Path, venv: Venv, folder: Path) -> Path:
    """Build Detectron2's wheel, without its C++ extension where that does not compile."""
    wheels = folder / "wheels"
    # Without pip's cache: it would hand out an extension that was compiled for another torch.
    flags = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(wheels))
    try:
        venv.step("Detectron2 build: takes minutes", venv.pip("wheel", *flags, str(source)))
    except SetupError as error:
        print(f"{error}\n    Detectron2's C++ extension is optional: going on without it. To try")
        print(f"    again with a C++ compiler: make setup DETECTRON2={SOURCES['detectron2']}")
        shutil.rmtree(wheels, ignore_errors=True)
        command = [str(venv.python), "-c", PURE_WHEEL, str(wheels)]
        venv.step("Detectron2 build without the extension", command, cwd=source)
    return next(wheels.glob("*.whl"))


def verify_detectron2(venv: Venv, record: dict[str, Any]) -> str:
    """Import Detectron2 and record whether its extension is there; return "" or the error."""
    command = [str(venv.python), "-c", IMPORT_DETECTRON2]
    code, output, errors = capture(command, cwd=venv.folder, timeout=300)
    record["extension"] = output.strip()
    if code != 0:
        return f"it is installed, but does not import:\n{errors.strip()[-1500:]}"
    return ""


def ensure_panopticapi(options: Options, venv: Venv, record: dict[str, Any]) -> str:
    """Have panopticapi in the environment; return "" or why it is not."""
    source = options.panopticapi
    if "panopticapi" in venv.probe()["found"] and record.get("panopticapi", "") == source:
        return ""
    problem = quick_problem(source or SOURCES["panopticapi"])
    if problem:
        return problem
    flags = ("-c", str(venv.constraints), "--no-build-isolation")
    command = venv.pip("install", *flags, *shlex.split(source or SOURCES["panopticapi"]))
    try:
        venv.step(f"panopticapi: {source or SOURCES['panopticapi']}", command)
    except SetupError as error:
        return str(error)
    record["panopticapi"] = source
    return ""


def summary(venv: Venv, state: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return one line that says what the environment holds."""
    versions = state["versions"]
    parts = [f"Python {dotted(state['python'])}"]
    parts += [f"{name} {versions.get(name, 'missing')}" for name in (*TORCH_PACKAGES, "detectron2")]
    extension = record.get("extension", "") if "detectron2" in state["found"] else ""
    return f"{venv.folder}: {', '.join(parts)}{f' ({extension})' if extension else ''}"
