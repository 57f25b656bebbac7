"""The benchmark of post-processing compares like with like."""

import argparse
import json

import pytest
import torch

pytest.importorskip("pycocotools")

from tools.benchmarks.head_outputs import make_outputs
from tools.benchmarks.postprocess import (
    Ours,
    Plain,
    add_arguments,
    agreement,
    decode,
    run,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize("num_cells", [90, 40])
@pytest.mark.parametrize("output_size", [(160, 240), (101, 77)])
def test_both_find_the_same(product, num_cells, output_size):
    outputs = make_outputs(90, (40, 60), 32, 10, num_cells)
    ways = (Ours(CPU, product=product), Plain(CPU))
    found = agreement(*(decode(way, outputs, (160, 240), output_size) for way in ways))
    assert found["instances"] > 20
    assert found["classes_equal"]
    assert found["largest_score_difference"] < 1e-5
    assert found["pixels_that_differ"] <= 5


def test_tables_and_file(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    file = tmp_path / "results.json"
    arguments = "--num 30 --size 20x30 --channels 16 --output-size 33x44 --repeats 1 --device cpu"
    run(parser.parse_args([*arguments.split(), "--output", str(file)]))
    assert "| masks" in capsys.readouterr().out
    (result,) = json.loads(file.read_text())["results"]
    assert set(result["stages"]) == {"classes", "masks", "NMS", "resize", "all", "RLE"}


def test_too_many_candidates():
    with pytest.raises(ValueError, match="don't fit"):
        make_outputs(5000, (20, 30), 16, 1, 5000)
