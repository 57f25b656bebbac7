"""The site is built without a warning, and the files about the project can be read."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))


def test_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    # Strict: a warning, such as a link to nothing, raises.
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert (tmp_path / "configs.html").is_file()
    # The reference comes from the docstrings, and links the types of signatures.
    reference = (tmp_path / "reference/nms.html").read_text()
    assert 'id="solo_d2.ops.matrix_nms.matrix_nms"' in reference
    assert 'href="#solo_d2.ops.mask_iou.MaskRows"' in reference
    assert 'href="changelog.html"' in (tmp_path / "index.html").read_text()
    # Nothing is loaded from other machines.
    pages = "".join(file.read_text() for file in tmp_path.glob("**/*.html"))
    assert re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?:[^"]+)', pages) == []


@pytest.mark.parametrize(
    ("repository", "page", "text", "expected"),
    [
        ("", "faq", "[targets](../solo_d2/targets.py), [b](design.md#x)",
         "targets, [b](design.md#x)"),
        ("https://x.org/r", "faq", "[targets](../solo_d2/targets.py)",
         "[targets](https://x.org/r/blob/main/solo_d2/targets.py)"),
        ("", "contributing", "[a](docs/design.md) [c](https://x.org) ![p](p.png)",
         "[a](design.md) [c](https://x.org) ![p](p.png)"),
        ("", "reference/nms", "[a](../speed.md#x) [t](../../solo_d2/targets.py)",
         "[a](../speed.md#x) t"),
    ],
)  # fmt: skip
def test_links_to_the_code(repository, page, text, expected):
    pytest.importorskip("mkdocs")
    from mkdocs_hooks import on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri=f"{page}.md"))
    assert on_page_markdown(text, page, SimpleNamespace(repo_url=repository), None) == expected


def test_workflow_tests_the_oldest_and_the_newest_versions():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    jobs = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert [job["versions"] for job in jobs] == ["oldest", "tested", "newest"]
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={jobs[0]["python"]},<3.14"' in project
    assert jobs[-1]["python"] == "3.13"
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    targets = {step.split()[1] for step in steps if step.startswith("make ")}
    assert targets == {"lint", "test", "docs", "reliability"}


def test_container_copies_what_is_there():
    text = (ROOT / "docker/Dockerfile").read_text()
    copied = [words.split()[1:-1] for words in re.findall(r"^COPY .*$", text, re.MULTILINE)]
    assert ["."] in copied
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")),
                         ids=lambda file: file.name)  # fmt: skip
def test_issue_forms(file):
    form = yaml.safe_load(file.read_text())
    if file.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"]["label"] for part in form["body"] if part["type"] != "checkboxes")


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert citation["version"] == version
    assert {r["identifiers"][0]["value"] for r in citation["references"]} == {
        "arXiv:1912.04488", "arXiv:2003.10152"
    }  # fmt: skip
