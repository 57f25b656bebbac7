"""Create or update the virtual environment: `make setup`, or `python tools/setup_env.py`.

Reads the variables of `make help` from the environment; others keep the values that the environment
was created with. Does nothing if the environment is up to date.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {
    "VERSIONS": "tested",
    "TORCH": "",
    "DETECTRON2": "git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833",
    "DETECTRON2_EXT": "",
    "PANOPTICAPI": "git+https://github.com/cocodataset/panopticapi.git"
    "@7bb4655548f98f3fedc07bf37e9040a992b054b0",
}
# Files that determine the installation, in addition to the variables.
INPUTS = ("constraints.txt", "pyproject.toml", "setup.py", ".pre-commit-config.yaml", __file__)
BUILD_TOOLS = ("pip", "setuptools", "wheel", "ninja")
# torch and the packages whose versions depend on it.
TORCH_PACKAGES = {"torch", "torchvision", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath"}
TORCH_PACKAGES |= {"networkx", "sympy", "typing-extensions"}
# sitecustomize.py that disables C++ extensions in setuptools.
NO_EXTENSIONS = """import setuptools
setup = setuptools.setup
setuptools.setup = lambda **kwargs: setup(**{**kwargs, "ext_modules": []})
"""


def constraints(versions: str, torch: str = "", kept: str = "") -> list[str]:
    """Return the lines of pip's constraints file.

    "tested" `versions` uses constraints.txt, "oldest" the lower bounds of pyproject.toml, "newest"
    none. `torch` (TORCH) removes those of torch; `kept`, a `pip list --format=freeze`, is
    preserved.
    """
    lines = re.findall(r"^\w\S*==.*", (ROOT / "constraints.txt").read_text(), re.M)
    if versions != "tested":
        lines = [line for line in lines if line.split("==")[0] in BUILD_TOOLS]
    if versions == "oldest":
        bounds = re.findall(r'"([\w.-]+)>=([\w.]+)[,"]', (ROOT / "pyproject.toml").read_text())
        lines += [f"{name}=={bound}" for name, bound in bounds if name not in BUILD_TOOLS]
    installed = {line.split("==")[0].lower(): line for line in kept.split() if "==" in line}
    free = {*installed, *(TORCH_PACKAGES if torch else ())}
    return [line for line in lines if line.split("==")[0].lower() not in free] + [
        line for name, line in installed.items() if name not in BUILD_TOOLS
    ]


def install(venv: Path, options: dict[str, str]) -> None:
    """Create the environment and install everything into it."""
    versions, torch, detectron2, extension, panopticapi = options.values()
    if versions not in ("tested", "oldest", "newest"):
        sys.exit(f"VERSIONS={versions}: choose tested, oldest or newest")
    run([sys.executable, "-m", "venv", venv], "Debian: apt install python3-venv. Or PYTHON=")
    python, limits = venv / "bin/python", venv / "constraints.txt"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-c", limits]
    kept = ""
    if detectron2 == "keep":  # with torch, from the interpreter that runs this
        packages = next((venv / "lib").glob("python*/site-packages"))
        link = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (packages / "solo_d2_keep.pth").write_text(link)
        freeze = [sys.executable, "-m", "pip", "list", "--format=freeze", "--exclude-editable"]
        kept = subprocess.run(freeze, check=True, stdout=subprocess.PIPE, text=True).stdout
    limits.write_text("\n".join(constraints(versions, torch, kept)) + "\n")
    run([*pip, *BUILD_TOOLS], "pip's options, such as PIP_INDEX_URL")
    pip.append("--no-build-isolation")
    if not kept:
        chosen = shlex.split(torch) or ["torch", "torchvision"]
        run([*pip, "--upgrade", *chosen], 'TORCH="torch==2.10.0 torchvision==0.25.0", or wheels')
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "sitecustomize.py").write_text(NO_EXTENSIONS)
            environ = {} if extension else {"PYTHONPATH": folder}
            build = [*pip, "--no-deps", "--no-cache-dir", "--force-reinstall", detectron2]
            run(build, "DETECTRON2= a checkout or wheel", **environ)
    run([*pip, *shlex.split(panopticapi)], "PANOPTICAPI= a checkout or wheel")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"(ruff|mypy|codespell)(?:-pre-commit)?\n +rev: v(\S+)", hooks)
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if versions == "newest" else []
    project = ["-e", f"{ROOT}[dev]", "detectron2", *(f"{tool}=={pin}" for tool, pin in tools)]
    run([*pip, *upgrade, *project], "VERSIONS= or PYTHON=")


def run(command: list[Any], remedy: str, **environ: str) -> None:
    """Run a step; exit with the remedy if it fails."""
    command = [str(part) for part in command]
    print(f"==> {shlex.join(command)}", flush=True)
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, check=False).returncode
    if code != 0:
        sys.exit(f"This step failed with exit code {code}. What may help: {remedy}")


def main() -> None:
    """Bring the environment up to date."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(
            f"{sys.executable} is Python {sys.version.split()[0]}. Choose 3.10 to 3.13: PYTHON="
        )
    venv = ROOT / Path(os.environ.get("VENV") or ".venv").expanduser()
    stamp, lock = venv / "solo_d2.json", venv / "solo_d2.lock"
    ours = lock.exists() or (venv / "pyvenv.cfg").exists()
    if venv.exists() and any(venv.iterdir()) and not ours:
        sys.exit(f"{venv} is not a virtual environment. Choose another folder: VENV=")
    venv.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = json.loads(stamp.read_text()) if stamp.is_file() else {}
        options = {k: os.environ.get(k) or made.get(k, v) for k, v in DEFAULTS.items()}
        inputs = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest()
        wanted = {**options, "inputs": inputs}
        if made != wanted:
            stamp.write_text(json.dumps({**made, "inputs": ""}))
            install(venv, options)
            stamp.write_text(json.dumps(wanted))


if __name__ == "__main__":
    main()
