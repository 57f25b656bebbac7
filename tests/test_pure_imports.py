"""What may import what: the pure modules need torch alone, and each library has its folders."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "solo_d2"
PURE = ("utils/images.py", "structures.py", "targets.py", "losses.py", "inference.py", "ops/*.py")
ALLOWED = {
    "detectron2": (
        *("api", "checkpoint", "config", "data", "engine", "evaluation", "export", "modeling"),
        "visualization",
    ),
    "triton": ("ops/triton",),
}

# One process for all modules, since torch takes seconds to import; each starts from none of ours.
IMPORT_BLOCKED = """
import importlib, json, sys, traceback

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("detectron2", "triton"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

def forget(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]

import torch  # which may look for triton itself
forget("triton")
sys.meta_path.insert(0, Block())
errors = {}
for name in sys.argv[1:]:
    forget("solo_d2")
    try:
        importlib.import_module(name)
    except Exception:
        errors[name] = traceback.format_exc()
print(json.dumps(errors))
"""


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def pure_modules():
    return sorted(module_name(file) for pattern in PURE for file in PACKAGE.glob(pattern))


def import_blocked(names, cwd=ROOT):
    """Import modules in a process of their own and return the traceback of each that fails."""
    command = [sys.executable, "-c", IMPORT_BLOCKED, *names]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def errors():
    return import_blocked(pure_modules())


def imports_of(source):
    """Return the top-level names of all absolute imports, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0], node.lineno


def test_pure_modules_are_found():
    assert "solo_d2.structures" in pure_modules()


@pytest.mark.parametrize("name", pure_modules())
def test_pure_module_imports_without_detectron2_and_triton(name, errors):
    assert name not in errors, errors[name]


def test_block_holds(tmp_path):
    lines = {
        "a": "import detectron2",
        "b": "from detectron2.config import get_cfg",
        "c": "import triton.language",
        "d": "from triton import jit",
        "harmless": "import torch",
    }
    for name, line in lines.items():
        (tmp_path / f"{name}.py").write_text(f"{line}\n")
    assert sorted(import_blocked(lines, cwd=tmp_path)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("library", ALLOWED)
def test_library_stays_in_its_folders(library):
    strays = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if not file.relative_to(PACKAGE).as_posix().startswith(ALLOWED[library])
        for name, line in imports_of(file.read_text())
        if name == library
    ]
    assert not strays, f"{library} is for solo_d2/{ALLOWED[library]} alone"
