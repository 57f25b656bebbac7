"""The benchmark of overlays draws the same by all and prints a table."""

import argparse
import json

import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from tools.benchmarks import drawing  # noqa: E402


def test_table_and_file(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    drawing.add_arguments(parser)
    file = tmp_path / "results.json"
    arguments = "--num 0 3 --size 60x80 --repeats 1 --device cpu --output".split()
    drawing.run(parser.parse_args([*arguments, str(file)]))
    assert "| 60x80" in capsys.readouterr().out
    none, some = json.loads(file.read_text())["results"]
    assert (none["num"], some["num"]) == (0, 3)
    assert set(some["milliseconds"]) == {"ours", "detectron2", "publication"}
    assert some["speedup"] > 0
