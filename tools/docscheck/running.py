"""Running the bash blocks of pages, in their order, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docscheck.pages import Block, Page

# What a small machine without data cannot do, and what must not be done to it.
NEEDS = (
    (r"--num-gpus +[1-9]|\bnvidia", "needs a GPU"),
    (r"--webcam", "needs a camera"),
    (r"(^|[\s\"'=])((my|more|photos|/path)\b|(photo|clip)\.)", "needs files of yours"),
    (r"configs/(coco|lvis|cityscapes|panoptic|ablations)/", "needs a data set or weights"),
    (r"^ *(pip install|docker|sbatch|srun|git clone)\b", "changes the machine"),
)
# Lines of output that the report of a failure shows.
LAST_LINES = 25


@dataclass(frozen=True)
class Outcome:
    """What became of a block.

    Attributes:
        place: page and line.
        command: its first line.
        state: "passed", "failed", "not run".
        detail: why it was not run, or the end of its output.
        seconds: that it took.
    """

    place: str
    command: str
    state: str
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        head = f"{self.state:8} {self.seconds:6.1f} s  {self.place}  {self.command}"
        return head if not self.detail else f"{head}\n    " + self.detail.replace("\n", "\n    ")


def copy_project(root: Path, target: Path) -> None:
    """Copy what git knows of a checkout, and what it does not ignore; nothing onto itself."""
    if target.exists() and target.samefile(root):
        return
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).is_file():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def run_page(page: Page, folder: Path, *, timeout: float) -> Iterator[Outcome]:
    """Run the bash blocks of a page, but those that are marked and those with `NEEDS`.

    Args:
        page: with its blocks.
        folder: where they are run.
        timeout: seconds that a block may take.
    """
    for block in page.blocks:
        if block.language in ("bash", "sh", "shell"):
            yield run_block(block, page.file.name, folder, timeout=timeout)


def run_block(block: Block, page_name: str, folder: Path, *, timeout: float) -> Outcome:
    """Run one block; see `run_page`."""
    script = block.run_as or block.text
    place, command = f"{page_name}:{block.line}", block.text.strip().partition("\n")[0]
    reason = block.skip or (not block.run_as and why_not_run(script))
    if reason:
        return Outcome(place, command, "not run", reason)
    start = time.monotonic()
    code, output = _bash(script, folder, timeout)
    seconds = time.monotonic() - start
    if code == 0:
        return Outcome(place, command, "passed", seconds=seconds)
    reason = f"no end after {timeout:g} s" if code is None else f"exit code {code}"
    tail: Sequence[str] = output.splitlines()[-LAST_LINES:]
    return Outcome(place, command, "failed", "\n".join([reason, *tail]), seconds)


def why_not_run(script: str) -> str:
    """What a block needs beyond a small machine, as far as its text tells; "" for nothing."""
    found = (why for pattern, why in NEEDS if re.search(pattern, script, re.MULTILINE))
    return next(found, "")


def _bash(script: str, folder: Path, timeout: float) -> tuple[int | None, str]:
    """Exit code, None after the timeout, and output of a script in a process group of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "MPLBACKEND": "Agg"}
    environ.pop("DETECTRON2_DATASETS", None)
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output
