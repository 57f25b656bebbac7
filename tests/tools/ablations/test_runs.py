"""Runs of the ablations with a trainer that only pretends: reuse, failures, order, report."""

import json
import math
import os
import re
import sys
import time
from pathlib import Path
from subprocess import Popen
from unittest import mock

import pytest
from detectron2.config import get_cfg

from solo_d2.engine import Trainer
from tools.ablations import runs as runs_module
from tools.ablations.command import main, parse_args
from tools.ablations.report import Line, format_table, make_lines
from tools.ablations.runs import (
    Outcome,
    Result,
    launch_program,
    plan_runs,
    read_result,
    run_all,
)
from tools.ablations.tables import CONFIGS, read_tables, settings

TABLES = read_tables()


class FakeTrainer:
    """Writes what train_net.py writes; AP is 50 + seed, and 10 more with coordinates."""

    def __init__(self):
        self.calls = []
        self.failing = ""

    def __call__(self, command, log):
        pairs = dict(zip(command, command[1:], strict=False))
        folder = Path(pairs["OUTPUT_DIR"])
        self.calls.append(command)
        log.write_text("begin\nall is well\n\n")
        if self.failing and self.failing in str(folder):
            (folder / "last_checkpoint").write_text("model_0000001.pth")
            log.write_text("Traceback\nValueError: no luck\n")
            return 3
        ap = 50.0 + int(pairs["SEED"])
        ap += 10 * (pairs.get("MODEL.SOLO.HEAD.KERNEL_COORDS") == "True")
        figures = {"segm/AP": ap, "segm/AP50": 80.0, "segm/APs": None}
        (folder / "evaluation.json").write_text(json.dumps(figures))
        if "--eval-only" not in command:
            (folder / "model_final.pth").write_bytes(b"weights")
        return 0

    def rows(self):
        names = [Path(call[-1]).name.rsplit("_seed", 1)[0] for call in self.calls]
        self.calls.clear()
        return names


@pytest.fixture
def trainer():
    return FakeTrainer()


@pytest.fixture
def ablate(tmp_path, trainer):
    """The command with the fake trainer; small data unless a base is named."""

    def run(*words):
        return main([*words, "--output", str(tmp_path / "out")], launch=trainer)

    return run


def plan(table, folder, seeds=(1,), **options):
    table = TABLES[table]
    shared = table.reference if table.evaluation_only else ""
    return plan_runs(settings(table, quick=True), seeds, folder, shared=shared, **options)


def test_a_row_is_a_call_of_the_trainer(tmp_path):
    none = plan("coord", tmp_path, seeds=[7])[0]
    assert none.command()[1:] == [
        *(str(CONFIGS.parent / "train_net.py"), "--config-file"),
        *(str(CONFIGS / "quickstart" / "solov2_shapes.yaml"), "--num-gpus", "1"),
        *("MODEL.SOLO.HEAD.KERNEL_COORDS", "False", "MODEL.SOLO.MASK_FEATURE.COORDS", "False"),
        *("SEED", "7", "OUTPUT_DIR", str(none.folder)),
    ]
    assert none.command(8, resume=True)[4:7] == ["--num-gpus", "8", "--resume"]
    command = plan("realtime", tmp_path)[0].command()
    pairs = dict(zip(command, command[1:], strict=False))
    assert pairs["MODEL.SOLO.HEAD.DEFORM"] == ""
    assert pairs["MODEL.RESNETS.DEFORM_ON_PER_STAGE"] == "[False, False, False, False]"


def test_max_iter_scales_the_steps_too(tmp_path):
    rows = settings(TABLES["coord"])
    run = plan_runs(rows, [1], tmp_path, max_iter=27000)[0]
    assert run.overrides == {"SOLVER.MAX_ITER": 27000, "SOLVER.STEPS": (21000, 25000), "SEED": 1}
    steps = [plan_runs(rows, [1], tmp_path, max_iter=n)[0].overrides for n in (1, 2, 10)]
    assert [o["SOLVER.STEPS"] for o in steps] == [(), (1,), (7, 9)]
    assert "SOLVER.STEPS" not in plan("coord", tmp_path, max_iter=10)[0].overrides  # cosine


def test_equal_runs_of_several_tables_share_a_folder(tmp_path):
    def reference(table, **options):
        name = TABLES[table].reference
        return next(r for r in plan(table, tmp_path, **options) if r.row == name).folder

    assert reference("coord") == reference("mask_feature") == reference("nms")
    others = [
        reference("kernel"),  # of another width there
        reference("coord", seeds=[2]),
        reference("coord", max_iter=5),
        reference("coord", opts=["SOLVER.BASE_LR", "0.1"]),
    ]
    assert len({reference("coord"), *others}) == 5


def test_finished_rows_are_used_again(ablate, trainer, capsys):
    def rows(*words):
        assert ablate("coord", "--quick", *words) == 0
        return sorted(trainer.rows())

    every = [f"solov2_{x}" for x in ("R50_3x", "coord_feature", "coord_kernel", "coord_none")]
    assert len(rows("--seeds", "1", "2")) == 8
    assert rows("--seeds", "1", "2", "3") == every
    assert rows() == []
    assert "none, seed 1: finished before" in capsys.readouterr().out
    assert rows("--retrain") == rows("SOLVER.BASE_LR", "0.1") == every


def test_an_interrupted_row_goes_on(ablate, trainer, capsys):
    trainer.failing = "coord_kernel"
    assert ablate("coord", "--quick") == 1
    out = capsys.readouterr().out
    assert "kernel, seed 1: failed: ended with exit code 3: ValueError: no luck (see " in out
    assert "console.log" in out
    assert "- kernel, seed 1: ended with exit code 3" in out  # under the table, too
    assert len(trainer.rows()) == 4
    trainer.failing = ""
    assert ablate("coord", "--quick") == 0
    (call,) = trainer.calls
    assert "--resume" in call
    trainer.calls.clear()
    assert ablate("coord", "--quick", "--retrain") == 0
    assert not any("--resume" in call for call in trainer.calls)


def test_an_old_evaluation_is_not_taken_for_the_new_one(tmp_path, trainer):
    run = plan("coord", tmp_path)[0]
    run_all([run], launch=trainer, progress=lambda text: None)
    (outcome,) = run_all([run], launch=lambda *_: 0, again=True, progress=lambda text: None)
    assert outcome.result is None
    assert read_result(run) is None


def test_results_of_other_code_are_named(tmp_path, trainer, monkeypatch):
    run = plan("coord", tmp_path)[0]
    told = []
    run_all([run], launch=trainer, progress=told.append)
    monkeypatch.setattr(runs_module, "code_digest", lambda: "changed")
    (outcome,) = run_all([run], launch=trainer, progress=told.append)
    assert outcome.reused
    assert outcome.result.metrics["segm/AP"] == 51
    assert math.isnan(outcome.result.metrics["segm/APs"])
    assert "--retrain" in told[-1]


def test_rows_without_training_share_the_model_of_their_seed(ablate, trainer, capsys):
    words, rows = ("nms", "--quick", "--seeds", "1", "2"), len(TABLES["nms"].rows)
    trainer.failing = "solov2_R50_3x"
    assert ablate(*words[:2]) == 1
    assert len(trainer.calls) == 1
    assert "Hard-NMS, seed 1: failed: " in capsys.readouterr().out
    trainer.failing = ""
    trainer.calls.clear()
    assert ablate(*words) == 0
    assert len(trainer.calls) == 2 * rows
    training, evaluating = trainer.calls[:2], trainer.calls[2:]
    assert not any("--eval-only" in call for call in training)
    for call in evaluating:
        pairs = dict(zip(call, call[1:], strict=False))
        weights = Path(pairs["MODEL.WEIGHTS"])
        assert weights.is_file()
        assert f"_seed{pairs['SEED']}_" in str(weights)
        assert (pairs["MODEL.SOLO.NMS.TYPE"], pairs["MODEL.SOLO.NMS.KERNEL"]) != (
            "matrix",
            "gaussian",
        )
    trainer.calls.clear()
    weights = Path(training[0][-1]) / "model_final.pth"
    weights.unlink()  # to save space
    assert ablate(*words) == 0
    assert trainer.calls == []
    weights.write_bytes(b"trained again")
    assert ablate(*words) == 0
    assert len(trainer.calls) == rows - 1
    trainer.calls.clear()
    assert ablate(*words[:1], "--weights", str(weights), *words[2:]) == 0
    assert len(trainer.calls) == rows  # given weights are evaluated once
    assert all("--eval-only" in call for call in trainer.calls)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coords"], "'coords': choose from grid, "),
        ([], "choose from grid, "),
        (["coord", "SEED"], "'SEED' are not KEY VALUE pairs"),
        (["coord", "SEED", "3"], "use --seeds"),
        (["coord", "OUTPUT_DIR", "x"], "use --output"),
        (["coord", "MODEL.SOLO.HEAD.KERNEL_COORDS", "True"], "varies MODEL.SOLO.HEAD.KERNEL"),
        (["coord", "MODEL.NOTHING", "True"], "MODEL.NOTHING True"),
        (["schedule", "--max-iter", "5"], "varies SOLVER.MAX_ITER"),
        (["coord", "--seeds", "1", "1"], "--seeds 1 1"),
        (["coord", "--weights", __file__], "MODEL.WEIGHTS FILE"),
        (["nms", "--weights", "none.pth"], "none.pth do not exist"),
        (["coord", "--base-config", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_arguments_that_do_not_fit(ablate, trainer, capsys, words, message):
    assert ablate(*words) == 2
    assert message in capsys.readouterr().err
    assert trainer.calls == []


def test_seeds_end_where_words_begin(capsys):
    for words in (
        "coord --seeds 4 5 A.B 1",
        "--seeds 4 5 coord A.B 1",
        "coord A.B 1 --seeds 4 5",
        "coord --seeds 4 5 --num-gpus 1 A.B 1",
    ):
        args = parse_args(words.split())
        assert (args.table, args.opts, args.seeds) == ("coord", ["A.B", "1"], [4, 5]), words
    assert parse_args([]).table is None
    assert parse_args(["coord"]).seeds == [1]
    with pytest.raises(SystemExit):
        parse_args(["--seeds", "coord"])
    assert "not coord" in capsys.readouterr().err


def test_interrupt(ablate, trainer, tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert main(["coord", "--output", str(tmp_path)], launch=interrupted) == 130
    assert "run the same command" in capsys.readouterr().err


def test_dry_run_and_list(ablate, trainer, capsys):
    assert ablate("nms", "--quick", "--dry-run", "SOLVER.BASE_LR", "0.1") == 0
    out = capsys.readouterr().out
    rows = len(TABLES["nms"].rows)
    assert out.count("train_net.py") == out.count("SOLVER.BASE_LR 0.1") == rows
    assert ablate("--list") == 0
    assert "| coord " in capsys.readouterr().out
    assert trainer.calls == []


def test_the_trainer_leaves_the_figures_of_its_last_evaluation(tmp_path, monkeypatch):
    figures = {"segm": {"AP": 12.5, "APl": math.nan}}
    monkeypatch.setattr(Trainer, "_evaluate_datasets", classmethod(lambda *_: figures))
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "new")
    assert Trainer.test(cfg, None) is figures
    content = json.loads((tmp_path / "new" / runs_module.EVALUATION).read_text())
    assert content == {"segm/AP": 12.5, "segm/APl": None}


def test_a_process_writes_its_log_and_ends_with_the_command(tmp_path):
    log = tmp_path / "log"
    assert launch_program([sys.executable, "-c", "print('red'); raise SystemExit(5)"], log) == 5
    assert log.read_text() == "red\n"
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    launched = Popen.wait

    def interrupted(process, timeout=None):
        if timeout is not None:
            return launched(process, timeout)
        while not log.read_text():
            time.sleep(0.05)
        raise KeyboardInterrupt

    with mock.patch.object(Popen, "wait", interrupted), pytest.raises(KeyboardInterrupt):
        launch_program([sys.executable, "-c", code], log)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def outcome(run, *aps):
    return Outcome(run, Result({"segm/AP": aps[0]}, 1.0, "") if aps else None)


def test_statistics_by_hand(tmp_path):
    rows = settings(TABLES["coord"], quick=True)
    runs = {(r.row, r.seed): r for r in plan("coord", tmp_path, seeds=[1, 2, 3])}
    found = {
        "none": [[30.0], [32.0], [34.0]],
        "kernel": [[40.0], []],
        "feature": [[math.nan], [3.0]],
        "both": [[]],
    }
    outcomes = [
        outcome(runs[row, seed], *aps)
        for row, of_row in found.items()
        for seed, aps in enumerate(of_row, start=1)
    ]
    none, kernel, feature, both = make_lines(rows, outcomes)
    assert (none.mean, none.deviation, none.planned) == (32.0, 2.0, 3)  # (4 + 0 + 4) / (3 - 1)
    assert (kernel.mean, len(kernel.values), kernel.planned) == (40.0, 1, 2)
    assert both.values == ()
    undefined = (kernel.deviation, feature.mean, feature.deviation, both.mean)
    assert all(map(math.isnan, undefined))


def test_table_text():
    lines = [
        Line("none", 36.3, (40.0, 41.0), 2),
        Line("kernel", math.nan, (), 2),
        Line("feature", 37.8, (44.99,), 2),
        Line("both", 37.8, (44.0, 46.0), 3),
    ]
    rows = [line.strip("|").split("|") for line in format_table(lines, 3).splitlines()]
    assert [[cell.strip() for cell in row] for row in rows if "---" not in row[0]] == [
        ["", "paper AP", "to reference", "our AP", "±", "our difference", "seeds"],
        ["none", "36.3", "-1.5", "40.5", "0.7", "-4.5", "2/2"],
        ["kernel", "-", "-", "-", "-", "-", "0/2"],
        ["feature", "37.8", "+0.0", "45.0", "-", "+0.0", "1/2"],
        ["both", "37.8", "reference", "45.0", "1.4", "reference", "2/3"],
    ]


def test_report_files(ablate, trainer, tmp_path, capsys):
    assert ablate("coord", "--quick", "--seeds", "1", "3", "SOLVER.BASE_LR", "0.1") == 0
    folder = tmp_path / "out" / "quick"
    page = (folder / "coord.md").read_text()
    assert page in capsys.readouterr().out
    assert page.startswith("# Explicit coordinates (SOLOv2, table 3b)\n")
    assert "seeds 1, 3; SOLVER.BASE_LR 0.1" in page
    assert "| none | 36.3 | -1.5 | 52.0 | 1.4 | -10.0 | 2/2 |" in re.sub(" +", " ", page)
    content = json.loads((folder / "coord.json").read_text())
    row = content["rows"][0]
    assert (row["row"], row["mean"], row["paper"]["AP"]) == ("none", 52.0, 36.3)
    assert [run["seed"] for run in row["runs"]] == [1, 3]
    assert row["runs"][0]["metrics"] == {"segm/AP": 51, "segm/AP50": 80, "segm/APs": None}
    assert content["reference"] == "both"
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
