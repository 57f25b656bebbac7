"""Train and evaluate the rows of a table, each in a process of train_net.py.

The folder of a run contains a digest of its config, so that equal runs of several tables (such as
the reference) are shared, and no run overwrites the results of another.
"""

import contextlib
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo_d2.config import load_config
from solo_d2.data.whole_folder import lock_beside
from solo_d2.utils.commands import cause_of_end
from solo_d2.utils.files import save_json
from tools.ablations.tables import ROOT, Setting
from tools.arguments import run_program

RESULT = "result.json"
LOG = "console.log"
# Written by the trainer: name -> value of the last evaluation.
EVALUATION = "evaluation.json"
MODEL = "model_final.pth"
# Code that results depend on.
CODE = ("solo_d2/**/*.py", "train_net.py")

# Runs a command, with its output in a file; returns the exit code.
Launch = Callable[[Sequence[str], Path], int]


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: str
    label: str  # for messages
    seed: int
    config_file: Path
    overrides: Mapping[str, Any]  # without OUTPUT_DIR
    folder: Path  # output
    weights: Path | None  # model to evaluate; None: it trains its own

    @property
    def trained_model(self) -> Path:
        """The model that is evaluated."""
        return self.weights or self.folder / MODEL

    def command(self, num_gpus: int = 1, *, resume: bool = False) -> list[str]:
        """Return the command line of train_net.py."""
        command = [sys.executable, str(ROOT / "train_net.py"), "--config-file"]
        command += [str(self.config_file), "--num-gpus", str(num_gpus)]
        if self.weights:
            command += ["--eval-only"]
        elif resume:
            command += ["--resume"]
        for key, value in self.overrides.items():
            command += [key, value if isinstance(value, str) else repr(value)]
        return [*command, "OUTPUT_DIR", str(self.folder)]


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    metrics: Mapping[str, float]  # name such as "segm/AP" -> percent; NaN if undefined
    seconds: float  # of training and evaluation
    code: str  # digest of the code


@dataclass(frozen=True)
class Outcome:
    """A run with its result or error."""

    run: Run
    result: Result | None  # None if it failed
    error: str = ""  # reason and log file
    reused: bool = False  # whether the result existed before


class RunError(RuntimeError):
    """A run failed; the message gives the reason and the log file."""


def plan_runs(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    folder: Path,
    *,
    opts: Sequence[str] = (),
    max_iter: int = 0,
    shared: str = "",
    weights: Path | None = None,
) -> list[Run]:
    """Create the runs of a table, seed by seed.

    Args:
        settings: rows of the table.
        seeds: seeds of each row.
        folder: parent of the runs' folders.
        opts: KEY, VALUE, ... for all rows.
        max_iter: length of the training, with SOLVER.STEPS scaled alike; 0: the config's.
        shared: row whose trained model all rows evaluate; "": each row trains its own.
        weights: model that all rows evaluate instead; needs `shared`.
    """
    runs = []
    for seed in seeds:
        common = {"SEED": seed, **dict(zip(opts[::2], opts[1::2], strict=True))}
        model = weights
        # The trained row comes first, as the others need its model.
        for setting in sorted(settings, key=lambda s: s.row.name != shared):
            overrides = {**setting.overrides, **_schedule(setting, max_iter), **common}
            run = _make_run(setting, seed, overrides, folder, model)
            runs.append(run)
            if setting.row.name == shared:
                model = run.trained_model
    order = [setting.row.name for setting in settings]
    return sorted(runs, key=lambda run: order.index(run.row))


def _schedule(setting: Setting, max_iter: int) -> dict[str, Any]:
    if not max_iter:
        return {}
    solver = load_config(str(setting.config_file), _flat(setting.overrides)).SOLVER
    changed: dict[str, Any] = {"SOLVER.MAX_ITER": max_iter}
    if any(step < solver.MAX_ITER for step in solver.STEPS):
        # Steps stay below the length; equal ones are merged.
        steps = {step * max_iter // solver.MAX_ITER for step in solver.STEPS} - {0}
        changed["SOLVER.STEPS"] = tuple(sorted(steps))
    return changed


def _make_run(
    setting: Setting, seed: int, overrides: dict[str, Any], folder: Path, weights: Path | None
) -> Run:
    if weights:
        overrides["MODEL.WEIGHTS"] = str(weights)
    cfg = load_config(str(setting.config_file), _flat(overrides))
    cfg.OUTPUT_DIR = ""
    digest = hashlib.sha256(f"{weights is not None} {cfg.dump()}".encode()).hexdigest()[:8]
    return Run(
        row=setting.row.name,
        label=f"{setting.label}, seed {seed}",
        seed=seed,
        config_file=setting.config_file,
        overrides=overrides,
        folder=folder / f"{setting.row.config.stem}_seed{seed}_{digest}",
        weights=weights,
    )


def _flat(overrides: Mapping[str, Any]) -> list[Any]:
    return [part for pair in overrides.items() for part in pair]


def code_digest(root: Path = ROOT) -> str:
    """Return a digest of the code that training and evaluation depend on."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for file in sorted(root.glob(pattern)):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def launch_program(command: Sequence[str], log: Path) -> int:
    """Run a command as a process; see `Launch`."""
    with log.open("wb") as file:
        return run_program(command, stdout=file, stderr=subprocess.STDOUT)


def run_all(
    runs: Sequence[Run],
    *,
    num_gpus: int = 1,
    again: bool = False,
    launch: Launch = launch_program,
    progress: Callable[[str], None] = print,
) -> list[Outcome]:
    """Execute runs, training runs first; a failure does not stop the others.

    Args:
        runs: see `plan_runs`.
        num_gpus: GPUs of one run.
        again: whether to repeat finished runs.
        launch: starts the trainer.
        progress: receives messages about each run.

    Returns:
        The outcomes, in the order of `runs`.
    """
    code, outcomes = code_digest(), {}
    for run in sorted(runs, key=lambda run: run.weights is not None):
        try:
            with lock_beside(run.folder):  # another table may execute the same run
                outcome = None if again else _finished(run, code, progress)
                if outcome is None:
                    progress(f"{run.label}: starting, see {run.folder / LOG}")
                    result = _make(run, num_gpus, again, code, launch)
                    outcome = Outcome(run, result)
                    ap, minutes = result.metrics["segm/AP"], result.seconds / 60
                    progress(f"{run.label}: AP {ap:.1f} after {minutes:.1f} min")
        except (RunError, OSError) as error:
            progress(f"{run.label}: failed: {error}")
            outcome = Outcome(run, None, error=str(error))
        outcomes[id(run)] = outcome
    return [outcomes[id(run)] for run in runs]


def _finished(run: Run, code: str, progress: Callable[[str], None]) -> Outcome | None:
    """Return the outcome of a run that has finished before, or None."""
    result = read_result(run)
    if result is None:
        return None
    progress(f"{run.label}: finished before, in {run.folder}")
    if result.code != code:
        progress(f"{run.label}: the code has changed since; --retrain repeats it")
    return Outcome(run, result, reused=True)


def _make(run: Run, num_gpus: int, again: bool, code: str, launch: Launch) -> Result:
    if run.weights and not run.weights.is_file():
        raise RunError(
            f"{run.weights} does not exist: its training failed, or the file was removed "
            "(--retrain repeats it)"
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, EVALUATION):
        (run.folder / name).unlink(missing_ok=True)
    resume = not again and (run.folder / "last_checkpoint").is_file()
    log = run.folder / LOG
    start = time.monotonic()
    exit_code = launch(run.command(num_gpus, resume=resume), log)
    seconds = time.monotonic() - start
    if exit_code != 0:
        raise RunError(f"ended {cause_of_end(exit_code)}: {last_line(log)} (see {log})")
    metrics = {}
    with contextlib.suppress(OSError, ValueError):
        metrics = _numbers(json.loads((run.folder / EVALUATION).read_text(encoding="utf-8")))
    if "segm/AP" not in metrics:
        raise RunError(f"{run.folder / EVALUATION} has no segm/AP (see {log})")
    numbers = {key: null(value) for key, value in metrics.items()}
    content = {"metrics": numbers, "seconds": seconds, "code": code}
    save_json(run.folder / RESULT, {**content, "weights": _state(run.weights)})
    return Result(metrics, seconds, code)


def read_result(run: Run) -> Result | None:
    """Read the result of a finished run, or None.

    An evaluation is valid as long as its model file is unchanged or was removed.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
        if _state(run.weights) in ("", content["weights"]):
            metrics = _numbers(content["metrics"])
            return Result(metrics, float(content["seconds"]), content["code"])
    return None


def _state(weights: Path | None) -> str:
    """Identify the state of a file; "" without one."""
    if weights is None or not weights.is_file():
        return ""
    state = weights.stat()
    return f"{state.st_size} bytes, {state.st_mtime_ns} ns"


def last_line(log: Path) -> str:
    """Return the last non-empty line of a log, which usually is the error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _numbers(content: Mapping[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else float(value) for key, value in content.items()}


def null(value: float) -> float | None:
    """Replace NaN by None for JSON."""
    return None if math.isnan(value) else value
