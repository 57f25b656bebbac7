"""Running commands and the virtual environment they run in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
# What the Makefile hands over; not for the programs that are run from here.
VARIABLES = ("VENV", "PYTHON", "VERSIONS", "TORCH", "DETECTRON2", "PANOPTICAPI", "ARGS")

# Run by the environment's interpreter. The first is cheap and imports nothing of what it looks for.
PROBE = """
import importlib.metadata as metadata, importlib.util, json, sys
versions = {}
for distribution in metadata.distributions():
    name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
    versions.setdefault(name, distribution.version)
found = {}
for name in ("torch", "torchvision", "detectron2", "panopticapi", "solo_d2"):
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        found[name] = spec.origin
print(json.dumps({"python": list(sys.version_info[:3]), "versions": versions, "found": found}))
"""


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what helps."""


class Venv:
    """A virtual environment and what is recorded in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.constraints = folder / "solo_d2_constraints.txt"
        self.lock = folder / "solo_d2_setup.lock"
        self._record = folder / "solo_d2_setup.json"

    def read_record(self) -> dict[str, Any]:
        """Return what the last set-up recorded; {} if there is none that can be read."""
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record at once, so that an interruption leaves no half."""
        half = self._record.with_suffix(".part")
        half.write_text(json.dumps(record, indent=1))
        half.replace(self._record)

    def probe(self) -> dict[str, Any]:
        """Return Python's version, all distributions and where the main packages are found."""
        return probe(str(self.python), self.folder)

    def pip(self, *args: str) -> list[str]:
        """Return a pip command in this environment."""
        return [str(self.python), "-m", "pip", *args]

    def step(self, title: str, command: Sequence[str], **kwargs: Any) -> None:
        """Run one step; its output goes to a file in the environment's folder `setup-logs`."""
        logs = self.folder / "setup-logs"
        logs.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", title.split(":")[0].lower()).strip("-")
        run_step(title, command, log=logs / f"{name}.log", **kwargs)


@contextlib.contextmanager
def locked(venv: Venv) -> Iterator[None]:
    """Keep a second set-up of the same environment waiting."""
    import fcntl

    venv.folder.mkdir(parents=True, exist_ok=True)
    with venv.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"waiting for another set-up of {venv.folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def child_environ() -> dict[str, str]:
    """Return the environment for children: without make's variables, and never asking anything."""
    environ = dict(os.environ)
    make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    for name in (*make, *VARIABLES):
        environ.pop(name, None)
    environ.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", GIT_TERMINAL_PROMPT="0")
    environ.setdefault("NO_MKDOCS_2_WARNING", "1")  # about its successor, not about our pages
    # Give up on a connection that has come to a halt for a minute.
    environ.setdefault("GIT_HTTP_LOW_SPEED_LIMIT", "1000")
    environ.setdefault("GIT_HTTP_LOW_SPEED_TIME", "60")
    return environ


def capture(command: Sequence[str], *, cwd: Path, timeout: float = 120) -> tuple[int, str, str]:
    """Run a short command and return its exit code, output and errors."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=child_environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer in {timeout:.0f} s"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


def run_step(
    title: str, command: Sequence[str], *, log: Path, hint: str = "", cwd: Path = ROOT
) -> None:
    """Run a long command with its output in a file and a sign of life every half minute.

    Raises:
        SetupError: the command failed; with the end of its output, the file and the hint.
    """
    print(f"==> {title}", flush=True)
    start = time.monotonic()
    with log.open("w") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=child_environ(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        code = None
        while code is None:
            try:
                code = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                print(f"    {time.monotonic() - start:.0f} s ...", flush=True)
            except BaseException:
                process.terminate()
                raise
    if code != 0:
        lines = log.read_text(errors="replace").rstrip().splitlines()[-15:]
        tail = "\n".join(f"    | {line[:300]}" for line in lines)
        message = f"failed: {title}\n{tail}\n    all of it: {log}"
        raise SetupError(f"{message}\n{hint}" if hint else message)
    print(f"    {time.monotonic() - start:.0f} s", flush=True)


def probe(python: str, cwd: Path) -> dict[str, Any]:
    """Return what `PROBE` prints; without entries when the interpreter does not run."""
    code, output, _ = capture([python, "-c", PROBE], cwd=cwd)
    if code != 0:
        return {"python": [], "versions": {}, "found": {}}
    state: dict[str, Any] = json.loads(output)
    return state


def dotted(version: Sequence[int]) -> str:
    """Return 3.11.7 for (3, 11, 7)."""
    return ".".join(map(str, version))


def check_python(version: Sequence[int], what: str) -> None:
    """Raise unless the project supports this version of Python."""
    if not OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        raise SetupError(
            f"{what} {f'is Python {dotted(version)}' if version else 'does not run'}; this project "
            "needs Python 3.10 to 3.13. Name one by PYTHON=, like make test PYTHON=python3.12"
        )
