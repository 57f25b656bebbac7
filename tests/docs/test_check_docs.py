"""The project's pages hold, and the checker finds what does not."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_docs  # noqa: E402
from docscheck import commands, imports, pages, running  # noqa: E402


@pytest.mark.parametrize("file", check_docs.default_pages(ROOT), ids=lambda file: file.name)
def test_page_holds(file):
    problems = list(check_docs.check_page(pages.read_page(file), ROOT))
    assert not problems, "\n".join(map(str, problems))


def faults(tmp_path, text):
    file = tmp_path / "page.md"
    file.write_text(text)
    return [problem.text for problem in check_docs.check_page(pages.read_page(file), ROOT)]


def bash(command):
    return f"# Page\n\n```bash\n{command}\n```\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python tools/no_such_tool.py", "there is no tools/no_such_tool.py"),
        ("python tools/convert_weights.py in.pth out.pth --no-such", "--no-such"),
        ("python tools/labels_to_coco.py --images a", "--output"),
        ("python train_net.py --config-file configs/coco/no_such.yaml", "configs/coco/no_such"),
        ("python train_net.py --config-file o/config.yaml SOLVER.NO_SUCH 1", "SOLVER.NO_SUCH"),
        (
            "python train_net.py --config-file configs/coco/solov2_R50_1x.yaml SOLVER.MAX_ITER x",
            "SOLVER.MAX_ITER",
        ),
        (
            "python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py "
            "train.no_such=1 train.max_iter=2",
            "solov2_R50_1x.py has no train.no_such",
        ),
        ("X=1 python train_net.py SOLVER.MAX_ITER 1 --train-json a", "--train-json"),
        ("python tools/benchmark.py nms --no-such", "--no-such"),
        ("python tools/benchmark.py no_such", "no_such"),
        ("python tools/ablate.py coord --no-such", "--no-such"),
        ("python -m solo_d2.data.shapes --no-such", "--no-such"),
        ("python -m solo_d2.no_such", "solo_d2.no_such"),
        ("python setup.py", "it runs when it is imported"),
        ("cd x && make no_such", "no target no_such"),
        ("make test NO_SUCH=1", "no variable NO_SUCH"),
        ("pip install -e '.[no_such]'", "no extra no_such"),
        ("no_such_program --x | head", "no_such_program"),
        ("echo 'open", "No closing quotation"),
    ],
)
def test_faults_of_commands(tmp_path, command, expected):
    found = faults(tmp_path, bash(command))
    assert len(found) == 1
    assert expected in found[0]


def test_good_commands_pass(tmp_path):
    text = bash(
        "# a comment\n"
        "export A=b\n"
        "OMP_NUM_THREADS=1 python train_net.py --config-file configs/coco/solov2_R50_1x.yaml \\\n"
        "    --num-gpus 1 SOLVER.IMS_PER_BATCH 4 MODEL.WEIGHTS_ALLOW \"['head.class_logits.*']\"\n"
        "make test ARGS='-k nms' > log.txt 2>&1; pip install -e .[docs] && ls\n"
        "python -m pytest tests | head\n"
    )
    assert faults(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](missing.md)", "missing.md"),
        ("![a](images/missing.jpg)", "images/missing.jpg"),
        ("[a](#no-such)\n# Other", "#no-such"),
        ("`solo_d2/no_such.py` is", "solo_d2/no_such.py"),
        ("`MODEL.SOLO.NO_SUCH` is", "MODEL.SOLO.NO_SUCH"),
        ("`SOLVER.NO_SUCH True` is", "SOLVER.NO_SUCH"),
        ("```python\nfrom solo_d2 import no_such\n```", "no_such"),
        ("```python\nx = (\n```", "never closed"),
        ("```yaml\nMODEL:\n  NO_SUCH: 1\n```", "NO_SUCH"),
        ("```yaml\na: [\n```", "YAML"),
    ],
)
def test_faults_of_text(tmp_path, text, expected):
    found = faults(tmp_path, text)
    assert len(found) == 1
    assert expected in found[0]


def test_good_text_passes(tmp_path):
    (tmp_path / "other.md").write_text("# Two words: `code`\n")
    text = (
        "# Page\n[a](other.md#two-words-code) [b](#page) [c](https://example.org/x.md)\n"
        "`configs/coco/*.yaml`, `solo_d2/ops/`, `my/folder`, `NMS.SIGMA`, `TEST.EVAL_PERIOD 0`\n"
        "```python\nfrom solo_d2 import matrix_nms\n```\n"
        "```yaml\nMODEL:\n  SOLO:\n    CENTER_SCALE: 0.3\n```\n"
        "```text\n[no](link.md)\n```\n"
    )
    assert faults(tmp_path, text) == []


def test_a_tool_is_not_run_by_being_checked(tmp_path, monkeypatch):
    (tmp_path / "tool.py").write_text("print('ran')\nraise SystemExit(1)\n")
    with pytest.raises(commands.ParserError, match="runs when it is imported"):
        commands.parse("tool.py", [], tmp_path)


def test_imports_are_read_from_the_code(tmp_path):
    package = tmp_path / "solo_d2"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("import detectron2\n")
    (package / "errors.py").write_text("import torch\n")
    (package / "data" / "a.py").write_text(
        "def f():\n    import detectron2.data\nfrom solo_d2 import errors\n"
        "from solo_d2.data.b import x\nimport solo_d2.losses as l\n"
    )
    found = imports.import_map(tmp_path)
    assert found == {"errors": set(), "data": {"errors", "losses", "detectron2"}}
    page = tmp_path / "page.md"
    page.write_text(f"# A\n{imports.BEGIN}\nold\n{imports.END}\nend\n")
    (problem,) = imports.check_imports(pages.read_page(page), tmp_path)
    assert problem.line == 2
    page.write_text(imports.with_table(page.read_text(), tmp_path))
    assert "| `data` | `errors`, `losses` | `detectron2` |\n" in page.read_text()
    assert page.read_text().endswith(f"{imports.END}\nend\n")
    assert not list(imports.check_imports(pages.read_page(page), tmp_path))


def test_blocks_run_in_order_and_are_reported(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(
        "```bash\necho made > made.txt\n```\n"
        "```bash\ntest -f made.txt\ncat made.txt | grep other\necho not reached\n```\n"
        "<!-- not run: needs a GPU -->\n```bash\nrm made.txt\n```\n"
        "text\n\n<!-- run as: echo small > made.txt -->\n```bash\nexit 3\n```\n"
        "```bash\nsleep 20 & sleep 20\n```\n"
        "```python\nraise ValueError\n```\n"
    )
    found = list(running.run_page(pages.read_page(file), tmp_path, timeout=2))
    assert [outcome.state for outcome in found] == [
        *("passed", "failed", "not run", "passed", "failed")
    ]
    assert "exit code 1" in found[1].detail
    assert "not reached" not in found[1].detail
    assert found[2].detail == "needs a GPU"
    assert "no end after 2 s" in found[4].detail
    assert (tmp_path / "made.txt").read_text() == "small\n"
    assert "page.md:5" in str(found[1])


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("python train_net.py --config-file a.yaml --num-gpus 8", "needs a GPU"),
        ("python x.py --json my/train.json", "needs files of yours"),
        ("find photos | python x.py --video-input clip.mp4", "needs files of yours"),
        ("python train_net.py --config-file configs/lvis/solov2_R50_v1_3x.yaml", "data set"),
        ("true\npip install x", "changes the machine"),
        ("python x.py --num-gpus 0 output/my/train.json && git status", ""),
    ],
)
def test_what_a_small_machine_cannot_run_is_left_out(tmp_path, command, reason):
    assert reason in running.why_not_run(command)
    assert bool(running.why_not_run(command)) == bool(reason)
    marked = pages.Block(1, "bash", command, run_as="true")
    assert running.run_block(marked, "page.md", tmp_path, timeout=5).state == "passed"


def test_a_copy_has_what_git_does_not_ignore(tmp_path):
    import subprocess

    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", source], check=True)
    for name in (".gitignore", "folder/new.py", "output.txt"):
        (source / name).write_text("output*\n")
    running.copy_project(source, target)
    running.copy_project(source, source)  # to run in the project itself
    copied = sorted(str(f.relative_to(target)) for f in target.rglob("*") if f.is_file())
    assert copied == [".gitignore", "folder/new.py"]


def test_command_line(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(bash("echo hello"))
    assert check_docs.main([str(page)]) == 0
    assert check_docs.main([str(page), "--run", "--scratch", str(tmp_path / "copy")]) == 0
    output = capsys.readouterr().out
    assert "passed" in output
    assert (tmp_path / "copy" / "train_net.py").is_file()
    page.write_text(bash("exit 1"))
    assert check_docs.main([str(page), "--run", "--scratch", str(tmp_path / "copy")]) == 1
