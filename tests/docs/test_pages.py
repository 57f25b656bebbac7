"""Check the blocks, links and names of README.md and docs; `-m reliability` also runs them.

A comment before a block says why it does not run (`<!-- skip: next "takes hours" -->`) and may add
a shorter one (`<!-- invisible-code-block: bash`, the commands, `-->`).
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

import pytest
import yaml

pytest.importorskip("sybil")

from fvcore.common.config import CfgNode
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from solo_d2.config import default_config
from tests.docs import commands

ROOT = Path(__file__).resolve().parents[2]
# tests/docs/test_extending.py runs the blocks of that page, which have keys of their own.
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("**/*.md")} - {EXTENDING})]
FOLDERS = ("configs", "demo", "docker", "docs", "solo_d2", "tests", "tools")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FENCES = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Blocks that need more than a small machine without data.
NEEDS = re.compile(
    r"--num-gpus +[1-9]|\bnvidia|--webcam|(^|[\s\"'=])((my|more|photos|/path)\b|(photo|clip)\.)"
    r"|configs/(coco|lvis|cityscapes|panoptic|ablations)/"
    r"|^ *(pip install|docker|sbatch|srun|git clone)\b",
    re.MULTILINE,
)


def check_commands(source):
    found = [fault for words in commands.commands(source) for fault in commands.faults(words)]
    assert not found


def check_python(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.match(r"solo_d2|demo|detectron2", node.module):
            for alias in node.names:
                module = importlib.import_module(node.module)
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def check_yaml(source):
    content, cfg = yaml.safe_load(str(source)), default_config()
    if isinstance(content, dict) and set(content) & set(cfg):
        content.pop("_BASE_", None)
        cfg.merge_from_other_cfg(CfgNode(content))


def parse(file, **languages):
    """Return the blocks of a file, each evaluated by the function of its language."""
    parsers = [
        CodeBlockParser(language, lambda example, check=check: check(example.parsed))
        for language, check in languages.items()
    ]
    return Sybil([*parsers, SkipParser()] if len(languages) == 1 else parsers).parse(file)


def check_blocks(file):
    for example in parse(
        file, bash=check_commands, python=check_python, yaml=check_yaml
    ).examples():
        example.evaluate()


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_blocks(file):
    check_blocks(file)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_names_in_the_text(file):
    assert unknown_names(FENCES.sub("", file.read_text())) == []


def unknown_names(text):
    """Return the config keys and files of the project that a text names and that do not exist."""
    keys = dict(flatten(default_config()))
    unknown = []
    for word in (code.split()[0].rstrip(",;:") for code in CODE.findall(text) if code.strip()):
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+", word):
            if not any(key == word or key.endswith(f".{word}") for key in keys):
                unknown.append(word)
        elif word.partition("/")[0] in FOLDERS and re.fullmatch(r"[\w./*-]+/[\w./*-]*", word):
            unknown += [] if any(ROOT.glob(word.rstrip("/"))) else [word]
    return unknown


def flatten(node, prefix=""):
    for key, value in node.items():
        yield prefix + key, value
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")


def test_links_of_the_readme():
    for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text()):
        assert "://" in target or (ROOT / target).exists(), target


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a copy of what git tracks."""
    folder = tmp_path_factory.mktemp("project")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.mark.reliability
@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_commands_run(file, project):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(project), "MPLBACKEND": "Agg"}

    def run(source):
        if not NEEDS.search(source):
            script = ["bash", "-euo", "pipefail", "-c", source]
            subprocess.run(script, cwd=project, env=environ, check=True, timeout=1800)

    for example in parse(file, bash=run).examples():
        try:
            example.evaluate()
        except SkipTest as reason:
            print(f"{file.name}:{example.line}: {reason}")


@pytest.mark.parametrize(
    "command",
    [
        "python tools/no_such_tool.py",
        "python tools/convert_weights.py in.pth out.pth --no-such",
        "python tools/labels_to_coco.py --images a",
        "python train_net.py --config-file configs/coco/no_such.yaml",
        "python train_net.py --config-file o/config.yaml SOLVER.NO_SUCH 1",
        "python train_net.py --config-file configs/coco/solov2_R50_1x.yaml SOLVER.MAX_ITER x",
        "python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py x=1",
        "X=1 python train_net.py SOLVER.MAX_ITER 1 --train-json a",
        "python tools/benchmark.py nms --no-such",
        "python -m solo_d2.data.shapes --no-such",
        "cd x && make no_such",
        "make test NO_SUCH=1",
        "no_such_program --x | head",
    ],
)
def test_wrong_commands_are_found(command):
    with pytest.raises(AssertionError):
        check_commands(command)


def test_wrong_names_and_blocks_are_found(tmp_path):
    text = "`solo_d2/no_such.py`, `configs/`, `MODEL.SOLO.NO_SUCH`, `NMS.SIGMA`, `my/folder`"
    assert unknown_names(text) == ["solo_d2/no_such.py", "MODEL.SOLO.NO_SUCH"]
    for block in ("bash\nmake x", "python\nfrom solo_d2 import x", "yaml\nMODEL: {NO_SUCH: 1}"):
        page = tmp_path / "page.md"
        page.write_text(f"```{block}\n```\n")
        with pytest.raises((AssertionError, ImportError, KeyError)):
            check_blocks(page)
