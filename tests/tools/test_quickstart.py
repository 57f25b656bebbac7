"""The quickstart without its training: what it decides, reads, draws and returns."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import picture, save
from tools import quickstart

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.detectron2

METRICS = {"segm/AP": 60.0, "segm/AP50": 80.0, "segm/APl": math.nan, "bbox/AP": 55.5}


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A data set of three images, of which two have two objects or more."""
    root = tmp_path / "datasets" / "shapes"
    objects = {"a.jpg": 2, "b.jpg": 1, "c.jpg": 3}
    for name in objects:
        save(root / "val" / name, picture(20, 30))
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(objects)],
        "annotations": [{"image_id": i} for i, n in enumerate(objects.values()) for _ in range(n)],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    return root


@pytest.fixture
def steps(monkeypatch, shapes):
    """Names of the steps that were run; they write what the real ones write."""
    done = []

    def call(step, command, log=None):
        done.append(step)
        words = [str(word) for word in command]
        if step == "Training":
            output = Path(words[words.index("OUTPUT_DIR") + 1])
            output.mkdir(parents=True, exist_ok=True)
            (output / "model_final.pth").write_bytes(b"weights")
            numbers = {k: None if math.isnan(v) else v for k, v in METRICS.items()}
            (output / quickstart.EVALUATION).write_text(json.dumps(numbers))
        else:
            folder = Path(words[words.index("--output") + 1])
            for file in map(Path, words[words.index("--input") + 1 :]):
                save(folder / file.name, picture(60, 90))

    monkeypatch.setattr(quickstart, "call", call)
    return done


def test_montage_has_an_input_beside_its_prediction():
    images = [np.full(size, 90, dtype=np.uint8) for size in [(40, 60, 3), (70, 50, 3)]]
    pairs = [(images[i % 2], np.full((200, 150, 3), 250, dtype=np.uint8)) for i in range(4)]
    montage = quickstart.make_montage(pairs, "a long line " * 30)
    side, gap = quickstart.SIDE, quickstart.GAP
    height, width = 2 * (side + gap) + gap, 6 * (side + gap) + gap
    assert montage.dtype == np.uint8
    assert montage.shape[1] == width
    bar = montage.shape[0] - height
    assert bar > 0
    row = montage[bar + gap + side // 2]
    assert (row[gap + side // 2] == 90).all()
    assert (row[2 * gap + side + side // 2] == 250).all()
    assert (montage[-side // 2, -side // 2] == 255).all()  # the last row has one pair only


def test_fingerprint_changes_with_config_base_overrides_and_code(tmp_path):
    def digest(*opts, **files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return quickstart.fingerprint(tmp_path / "config.yaml", opts, tmp_path)

    code = tmp_path / "solo_d2" / "a.py"
    code.parent.mkdir()
    code.write_text("a = 1")
    seen = [digest(base_yaml="SEED: 1", config_yaml="_BASE_: base.yaml"), digest("SEED", "2")]
    seen.append(digest(base_yaml="SEED: 3"))
    code.write_text("a = 2")
    seen.append(digest())
    assert len(set(seen)) == 4
    assert digest(README_md="not code") == seen[-1]


def test_a_finished_training_is_used_again(tmp_path, steps, capsys):
    output = tmp_path / "output"
    panoptic = str(ROOT / "configs/quickstart/panoptic_shapes.yaml")
    assert quickstart.parse_args(["--config-file", panoptic]).output == Path("output/panoptic")

    def trainings(*words):
        steps.clear()
        assert quickstart.main(["--output", str(output), *words]) == 0
        return steps.count("Training")

    assert trainings() == 1
    out = capsys.readouterr().out
    assert f"montage: {output / 'montage.png'}" in out
    assert "60.0    55.5" in out
    assert sorted(file.name for file in (output / "demo").iterdir()) == ["a.jpg", "c.jpg"]
    assert trainings() == 0
    assert steps == ["The demo"]
    assert trainings("--retrain") == trainings("SEED", "7") == 1
    (output / quickstart.STAMP).write_text("{half")
    assert trainings("SEED", "7") == 1


def test_panoptic_figures_are_shown_where_there_are_some():
    figures = {"panoptic_seg/PQ": 61.5, "panoptic_seg/PQ_th": 70.0, "panoptic_seg/PQ_st": math.nan}
    plain = quickstart.format_table(quickstart.Result(METRICS, 60.0), 90.0)
    table = quickstart.format_table(quickstart.Result(METRICS | figures, 60.0), 90.0)
    assert "PQ" not in plain
    assert "things" in table
    (line,) = [line for line in table.splitlines() if line.startswith("PQ")]
    assert line.split() == ["PQ", "61.5", "70.0", "-"]


@pytest.mark.parametrize(("ap", "text"), [(54.9, "is 54.9"), (math.nan, "undefined")])
def test_ap_below_the_floor_is_a_failure(tmp_path, steps, monkeypatch, capsys, ap, text):
    monkeypatch.setitem(METRICS, "segm/AP", ap)
    assert quickstart.main(["--output", str(tmp_path / "output")]) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert "the floor is 55" in captured.err
    assert "montage:" in captured.out


@pytest.fixture
def quickstart_with(tmp_path, shapes, monkeypatch, capfd):
    """Runs the quickstart with a program in place of train_net.py; its exit code and messages."""

    def run(program):
        (tmp_path / "train_net.py").write_text(f"import os, signal, sys, time\n{program}")
        config = ROOT / "configs/quickstart/solov2_shapes.yaml"
        code = quickstart.main(["--output", str(tmp_path / "output"), "--config-file", str(config)])
        return code, capfd.readouterr().err.splitlines()

    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    (tmp_path / "output").mkdir()
    return run


def test_a_failing_training_is_named_and_leaves_no_stamp(tmp_path, quickstart_with):
    (tmp_path / "output" / quickstart.STAMP).write_text("{}")
    code, err = quickstart_with("sys.exit('DatasetError: no such thing')")
    assert code == 1
    assert "no such thing" in err[0]
    assert "Training failed with exit code 1" in err[-1]
    assert not (tmp_path / "output" / quickstart.STAMP).exists()


KILL = "os.kill(os.getpid(), signal.{})"


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (f"os.write(2, b'half a line'); {KILL.format('SIGKILL')}", "by SIGKILL (usually out of m"),
        *((KILL.format(name), f"by {name}") for name in ("SIGSEGV", "SIGTERM")),
        *(("sys.exit(143)", "by SIGTERM"), ("sys.exit(130)", "by SIGINT")),
    ],
)
def test_a_training_that_is_ended_by_a_signal_is_named(tmp_path, quickstart_with, end, cause):
    code, err = quickstart_with(end)
    assert code == 1
    assert [line for line in err[:-1] if line] in ([], ["half a line"])
    for part in ("quickstart: Training was ended ", cause, tmp_path / "output" / "log.txt"):
        assert str(part) in err[-1]
    assert err[-1].startswith("quickstart: ")


@pytest.mark.parametrize(
    ("sent", "code", "name"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM")]
)
def test_a_quickstart_that_is_stopped_ends_the_training_cleanly(
    tmp_path, quickstart_with, sent, code, name
):
    gone = tmp_path / "training cleaned up"
    found, err = quickstart_with(f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    os.kill(os.getppid(), signal.{sent})
    time.sleep(60)
finally:
    time.sleep(0.5)
    open({str(gone)!r}, "w").close()
""")
    assert (found, len(err)) == (code, 1)
    assert f"Training was stopped by {name}; " in err[0]
    assert gone.exists()


@pytest.mark.parametrize("words", [["--config-file", "gone.yaml"], ["SOLVER.MAX_ITR", "5"]])
def test_a_wrong_config_is_named_before_training(words, capsys):
    with pytest.raises(SystemExit):
        quickstart.parse_args(words)
    message = capsys.readouterr().err
    assert any(word in message for word in ("gone.yaml", "SOLVER.MAX_ITR; there is"))
