"""The same seed gives the same bits: of losses, weights and predictions, in any process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from solo_d2.engine import setup
from tests.engine.runs import run_config, train
from tests.engine.test_resume import assert_same

ROOT = Path(__file__).resolve().parents[2]
# With all that is random: order, sizes, flips, jitter and pasting.
OPTS = (
    *("TEST.EVAL_PERIOD", 4, "INPUT.COPY_PASTE.PROB", 0.5, "INPUT.LSJ.ENABLED", True),
    *("INPUT.LSJ.SIZE", 96, "MODEL.SOLO.KEEP_THRESH_TEST", 0.0),
    *("MODEL.SOLO.SCORE_THRESH_TEST", 0.001),
)


def train_in_a_process(args, hash_seed):
    """As a user does, with Python's hashes and so the order of its sets by another seed."""
    options = ["--config-file", args.config_file]
    for name in ("train_json", "train_images", "val_json", "val_images"):
        options += ["--" + name.replace("_", "-"), getattr(args, name)]
    done = subprocess.run(
        [sys.executable, ROOT / "train_net.py", *options, *args.opts],
        env={
            **os.environ,
            "PYTHONHASHSEED": str(hash_seed),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def numbers(folder):
    """What a training has written: losses, weights and state, predictions and metrics."""
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    (predictions,) = folder.glob("inference/*/coco_instances_results.json")
    return {
        # As text: NaN, which stands for metrics of sizes that no object has, equals nothing.
        "losses": json.dumps(
            [{k: v for k, v in row.items() if not re.search("time|seconds", k)} for row in metrics]
        ),
        "checkpoint": torch.load(folder / "model_final.pth", weights_only=True),
        "predictions": json.loads(predictions.read_text()),
        "evaluation": json.loads((folder / "evaluation.json").read_text()),
    }


def test_other_workers_give_the_same_bits(shapes, tmp_path):
    found = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        train(setup(run_config(shapes, folder, *OPTS, "DATALOADER.NUM_WORKERS", workers)))
        found.append(numbers(folder))
    assert len(found[0]["predictions"]) > 0
    assert_same(*found)


@pytest.mark.reliability
def test_other_processes_give_the_same_bits_too(shapes, tmp_path):
    opts = (*OPTS, "SOLVER.MAX_ITER", 60, "TEST.EVAL_PERIOD", 30, "SOLVER.CHECKPOINT_PERIOD", 30)
    found = []
    for hash_seed, workers in ((1, 0), (2, 2), (3, 3)):
        folder = tmp_path / str(hash_seed)
        args = run_config(shapes, folder, *opts, "DATALOADER.NUM_WORKERS", workers)
        train_in_a_process(args, hash_seed)
        found.append(numbers(folder))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
