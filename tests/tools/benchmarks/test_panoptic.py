"""The benchmark of the panoptic merge compares equal results."""

import argparse
import json

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from tools.benchmarks import panoptic  # noqa: E402


def test_table_and_file(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    panoptic.add_arguments(parser)
    file = tmp_path / "results.json"
    arguments = "--num 0 20 --size 90x120 --repeats 1 --device cpu --output".split()
    panoptic.run(parser.parse_args([*arguments, str(file)]))
    printed = capsys.readouterr().out
    assert "| 90x120" in printed
    assert "NO" not in printed
    none, some = json.loads(file.read_text())["results"]
    assert (none["num"], some["num"]) == (0, 20)
    assert none["equal"]
    assert some["equal"]
    assert some["segments"] > 3


def test_labels_are_of_every_kind():
    labels = panoptic.make_labels((480, 640), 0)
    assert labels.shape == (480, 640)
    assert labels.min() >= 0
    assert labels.max() < panoptic.NUM_LABELS
    assert len(torch.unique(labels)) > 20
