"""What is asked for, where it comes from and which versions are allowed."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envsetup.process import ROOT, SetupError, capture

DETECTRON2_REPOSITORY = "https://github.com/facebookresearch/detectron2"
DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
SOURCES = {
    "detectron2": f"git+{DETECTRON2_REPOSITORY}.git@{DETECTRON2_COMMIT}",
    "panopticapi": "git+https://github.com/cocodataset/panopticapi.git"
    "@7bb4655548f98f3fedc07bf37e9040a992b054b0",
}
KEEP = "keep"
# What VERSIONS= may say.
TESTED, OLDEST, NEWEST = "tested", "oldest", "newest"
BUILD_TOOLS = ("pip", "setuptools", "wheel", "ninja")

# Packages whose versions another torch may dictate (torch 2.5 wants one exact sympy).
TORCH_PACKAGES = ("torch", "torchvision")
CHOSEN_BY_TORCH = {
    *TORCH_PACKAGES,
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy"),
    "typing-extensions",
}


@dataclass(frozen=True)
class Options:
    """What the caller asked for; an empty string stands for nothing."""

    venv: Path
    python: str = ""
    versions: str = ""
    torch: str = ""
    detectron2: str = ""
    panopticapi: str = ""
    args: tuple[str, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Options:
        """Read the variables that the Makefile exports.

        Raises:
            SetupError: VERSIONS is none of its three values.
        """

        def value(name: str) -> str:
            return environ.get(name, "").strip()

        if value("VERSIONS") not in ("", TESTED, OLDEST, NEWEST):
            raise SetupError(f"VERSIONS={value('VERSIONS')}: it is {TESTED}, {OLDEST} or {NEWEST}")
        return cls(
            venv=ROOT / Path(value("VENV") or ".venv").expanduser(),
            python=value("PYTHON"),
            versions=value("VERSIONS"),
            torch=value("TORCH"),
            detectron2=normalised(value("DETECTRON2")),
            panopticapi=normalised(value("PANOPTICAPI")),
            args=tuple(shlex.split(value("ARGS"))),
        )


def normalised(source: str) -> str:
    """Return a source as pip takes it: local ones absolute, `name @ address` without the name."""
    path = Path(source).expanduser()
    if source and source != KEEP and path.exists():
        return str(path.resolve())
    return re.sub(r"^[\w.-]+\s*@\s*(?=\S+:)", "", source)


def quick_problem(source: str) -> str:
    """Say, in seconds and before anything is installed, why a source cannot be had.

    Returns:
        "" when nothing speaks against it; what pip alone can tell is left to pip.
    """
    if source.startswith("git+"):
        address = source[len("git+") :].split("#")[0]
        repository = re.sub(r"^(\w+://[^/]*/[^@]*)@.*$", r"\1", address)
        if shutil.which("git") is None:
            return f"git is not installed, and it is needed for {source}"
        command = ["git", "ls-remote", "--exit-code", repository, "HEAD"]
        code, _, errors = capture(command, cwd=ROOT, timeout=60)
        return f"git cannot reach {repository}:\n{errors.strip()}" if code != 0 else ""
    path = Path(source)
    looks_local = source.startswith(("/", ".", "~")) or source.endswith(".whl")
    if looks_local and "://" not in source and not path.exists():
        return f"{source} does not exist"
    if path.is_dir() and not any((path / name).exists() for name in ("setup.py", "pyproject.toml")):
        return f"{path} is no checkout: it has no setup.py"
    return ""


def fingerprint(source: str) -> str:
    """Return a value that changes when a local checkout or wheel does; the source if not local."""
    path = Path(source)
    if not path.is_absolute() or not path.exists():
        return source
    folder = path / "detectron2" if path.is_dir() else path
    files = [file for file in folder.rglob("*.[pch]*") if file.is_file() and file.suffix != ".pyc"]
    newest = max((file.stat().st_mtime_ns for file in [path, *files]), default=0)
    return f"{path} {len(files)} {newest}"


def pinned_tools() -> list[str]:
    """Return ruff and mypy at the versions of .pre-commit-config.yaml."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = {"ruff": "ruff-pre-commit", "mypy": "mirrors-mypy"}
    found = {
        name: re.search(rf"repo:\s*\S+/{hook}\s+rev:\s*v?([\w.]+)", text)
        for name, hook in hooks.items()
    }
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise SetupError(f".pre-commit-config.yaml pins no version of {', '.join(missing)}")
    return [f"{name}=={match.group(1)}" for name, match in found.items() if match is not None]


def constraint_lines() -> dict[str, list[str]]:
    """Return the lines of constraints.txt by package name (one for each range of Pythons)."""
    lines: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        match = re.match(r"[\w.-]+", line)
        if match:
            lines.setdefault(match.group().lower(), []).append(line)
    return lines


def tested_torch() -> list[str]:
    """Return torch and torchvision as constraints.txt has them."""
    return [line for name in TORCH_PACKAGES for line in constraint_lines()[name]]


def oldest_pins() -> dict[str, str]:
    """Return the lower bounds of pyproject.toml as exact versions, by package name.

    Of all dependencies and extras, apart from the tools that build packages.
    """
    text = (ROOT / "pyproject.toml").read_text()
    bounds = re.findall(r'"([\w.-]+)>=([\w.]+)[,"]', text)
    return {name: f"{name}=={bound}" for name, bound in bounds if name not in BUILD_TOOLS}


def torch_request(options: Options) -> list[str]:
    """Return the pip arguments that install torch as asked for; [] where any may stay."""
    if options.torch:
        return ["--upgrade", *shlex.split(options.torch)]
    if options.versions == OLDEST:
        return [oldest_pins()[name] for name in TORCH_PACKAGES]
    if options.versions == TESTED:
        return tested_torch()
    return ["--upgrade", *TORCH_PACKAGES] if options.versions == NEWEST else []


def effective_constraints(options: Options, state: Mapping[str, Any]) -> str:
    """Return the constraints that hold in one environment.

    They never ask for another torch than the one that is there, and with DETECTRON2=keep for
    nothing else of what the interpreter brings either, except for the tools that build packages.
    """
    lines, versions = constraint_lines(), state["versions"]
    bounds = oldest_pins() if options.versions == OLDEST else {}
    if options.torch:
        bounds = {name: pin for name, pin in bounds.items() if name not in TORCH_PACKAGES}
    there = {name: f"{name}=={versions[name]}" for name in TORCH_PACKAGES if name in versions}
    pins = {**bounds, **there}
    free: set[str] = set()
    if options.detectron2 == KEEP:
        free = set(versions) - set(BUILD_TOOLS)
        pins["numpy"] = f"numpy=={versions['numpy']}" if "numpy" in versions else "numpy"
    elif options.versions in (OLDEST, NEWEST):  # what the others need follows from these
        free = set(lines) - set(BUILD_TOOLS)
    elif options.torch or not all(pin in lines.get(name, ()) for name, pin in pins.items()):
        free = set(CHOSEN_BY_TORCH)
    kept = [line for name in lines if name not in {*free, *pins} for line in lines[name]]
    return "\n".join([*kept, *pins.values()]) + "\n"


def input_key(options: Options) -> str:
    """Return a hash of everything that decides what the environment holds, Detectron2 apart."""
    versions = options.versions or TESTED
    choices = [str(ROOT), versions, options.torch, options.detectron2 == KEEP]
    digest = hashlib.sha256(json.dumps(choices).encode())
    for name in ("constraints.txt", "pyproject.toml", "setup.py", ".pre-commit-config.yaml"):
        digest.update((ROOT / name).read_bytes())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def essential(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a probe that must stay as recorded; other packages may come and go."""
    names = {*BUILD_TOOLS, *TORCH_PACKAGES, "numpy", "opencv-python", "pycocotools", "fvcore"}
    names |= {"detectron2", "panopticapi", "pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"}
    versions = {name: state["versions"].get(name, "") for name in sorted(names)}
    return {"python": state["python"], "found": state["found"], "versions": versions}


def remembered(options: Options, record: dict[str, Any]) -> Options:
    """Fill in what was not asked for now from what the environment was made with."""
    choices = record.get("choices", {})
    source = choices.get("detectron2", "")
    if Path(source).is_absolute() and not Path(source).exists():
        # The wheel or checkout has gone; what was installed from it stays.
        choices["detectron2"] = record["detectron2"]["source"] = ""
    names = ("versions", "torch", "detectron2", "panopticapi")
    return replace(options, **{n: getattr(options, n) or choices.get(n, "") for n in names})
