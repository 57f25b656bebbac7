"""The curves are those of metrics.json; bad input is one line."""

import json

import cv2
import pytest

from tools.plot_metrics import curve, main, plot, read_metrics

LINES = [
    {"iteration": 9, "total_loss": 2.0},
    {"iteration": 19, "total_loss": 1.5},
    {"iteration": 19, "total_loss": 1.0, "segm/AP": 30.0},  # after a resume
]


def write(folder, lines, end=""):
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.json").write_text(text + end)
    return folder


def test_curves(tmp_path):
    metrics = read_metrics(write(tmp_path / "run", LINES, end='{"iteration": 2'))
    assert curve(metrics, "total_loss") == ([9, 19], [2.0, 1.0])
    assert curve(metrics, "segm/AP") == ([19], [30.0])
    panel = plot({"a": metrics, "b": metrics[:1]}, ["total_loss"]).axes[0]
    assert [list(line.get_ydata()) for line in panel.lines] == [[2.0, 1.0], [2.0]]


def test_a_shorter_training_in_the_same_folder_replaces_the_first():
    lines = [{"iteration": i, "total_loss": loss} for i, loss in ((9, 4.0), (19, 3.0), (9, 1.0))]
    assert curve(lines, "total_loss") == ([9], [1.0])


def test_trainings_in_folders_of_the_same_name_need_names(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [str(write(tmp_path / name / "run", LINES)) for name in ("a", "b")]
    assert main([*runs, "--output", str(tmp_path / "curves.png")]) == 2
    assert "--names" in capsys.readouterr().err


def test_command_draws(tmp_path):
    runs = [str(write(tmp_path / name, LINES)) for name in ("a", "b")]
    assert main([*runs, "--output", str(tmp_path / "curves.png")]) == 0
    height, width, _ = cv2.imread(str(tmp_path / "curves.png")).shape
    assert width > 2 * height


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('not json\n{"iteration": 1}\n', "metrics.json, line 1 is no metrics"),
        ('{"iteration": 1, "lr": 0.1}\n', "no training has 'segm/AP'; choose from iteration, lr"),
        ('{"lr": 0.1}\n{"iteration": 1}\n', "metrics.json, line 1 is no metrics"),
        (None, "metrics.json cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    output = tmp_path / "curves.png"
    assert main([str(tmp_path), "--keys", "segm/AP", "--output", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_an_unknown_format_is_refused(tmp_path, capsys):
    write(tmp_path / "run", LINES)
    command = [str(tmp_path / "run"), "--keys", "total_loss", "--output", "curves.xyz"]
    assert main(command) == 2
    assert "curves.xyz" in capsys.readouterr().err
