"""The examples of docs/extending.md run as they stand there, outside of the checkout."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

pytest.importorskip("sybil")

from solo_d2.config import load_config
from solo_d2.utils.errors import ConfigError
from tests.docs.test_pages import EXTENDING, ROOT, parse

# What makes the documented commands short.
SHORT = {
    "train_net.py": "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 SOLVER.REFERENCE_IMS_PER_BATCH 2 "
    "SOLVER.WARMUP_ITERS 0",
    "-m": "--num-train 8 --num-val 4",
}
# Runs commands in one process, since most of the time of each is spent on importing torch.
DRIVER = """
import json, runpy, sys
codes = []
for words in json.load(open("commands.json")):
    module = words[1] == "-m"
    sys.argv = words[1 + module:]
    try:
        (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code)
json.dump(codes, open("codes.json", "w"))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Write the files of the page to a folder and run its commands there."""
    folder = tmp_path_factory.mktemp("my_project")
    commands = []

    def write(text):
        (folder / text.split()[1]).write_text(text)

    for example in parse(EXTENDING, python=write, yaml=write, bash=commands.append).examples():
        example.evaluate()
    commands = [line.split() for text in commands for line in text.splitlines()]
    commands.sort(key=lambda words: words[1] != "-m")  # the data first
    for words in commands:
        words += next((SHORT[key].split() for key in SHORT if words[1].endswith(key)), [])
    (folder / "commands.json").write_text(json.dumps(commands))
    (folder / "checkout").symlink_to(ROOT)
    Image.new("RGB", (128, 96)).save(folder / "photo.jpg")
    environ = {"PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(folder), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "codes.json").is_file(), done.stdout + done.stderr
    codes = json.loads((folder / "codes.json").read_text())
    assert codes == [0] * len(commands), done.stdout + done.stderr
    return folder


def saved(project, name):
    """The section MODEL.SOLO that a training has saved."""
    return yaml.safe_load((project / f"output/{name}/config.yaml").read_text())["MODEL"]["SOLO"]


def test_keys_of_ones_own_are_saved_and_read_back(project):
    assert saved(project, "head")["BASIS"] == {"NUM_MAPS": 24}
    assert saved(project, "parts")["NMS"]["MAX_PER_CLASS"] == 5
    assert saved(project, "parts")["LOSS"]["EDGE_WEIGHT"] == 0.5
    assert (project / "overlays").is_dir()
    with pytest.raises(ConfigError, match=r"MODEL\.SOLO\.BASIS.*--import"):
        load_config(str(project / "output/head/config.yaml"))


def test_a_subclass_of_the_panoptic_model_is_panoptic(project):
    assert "loss_sem_seg" in (project / "output/model/metrics.json").read_text()
    assert "panoptic_seg" in (project / "output/model/evaluation.json").read_text()


def test_a_data_set_has_the_type_and_the_evaluator(project):
    assert saved(project, "data")["NUM_CLASSES"] == 1
    assert '"count' in (project / "output/data/evaluation.json").read_text()


def test_the_page_counts_the_lines_of_the_head(project):
    lines = len((project / "my_head.py").read_text().splitlines())
    assert f"The head below has {lines} lines" in EXTENDING.read_text()
