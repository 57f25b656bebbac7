"""The site is built without a warning, and the files about the project can be read."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed"
)


def build(project):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in ("docs", "configs", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@needs_mkdocs
def test_site_is_built_without_a_warning(project):
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    site = project / "build" / "site"
    assert (site / "configs.html").is_file()
    assert 'href="changelog.html"' in (site / "index.html").read_text()
    # Nothing is loaded from other machines.
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?:[^"]+)', _text(site))
    assert loaded == []


def _text(site):
    return "".join(file.read_text() for file in site.glob("*.html"))


@needs_mkdocs
def test_a_broken_link_is_an_error(project):
    page = project / "docs" / "faq.md"
    text = page.read_text()
    page.write_text(f"{text}\n[x](missing.md)\n")
    done = build(project)
    assert done.returncode == 1
    assert "missing.md" in done.stderr
    page.write_text(text)


@needs_mkdocs
@pytest.mark.parametrize(
    ("repository", "expected"),
    [("", "see targets, [b](design.md#x)"),
     ("https://x.org/r",
      "see [targets](https://x.org/r/blob/main/solo_d2/targets.py), [b](design.md#x)")],
)  # fmt: skip
def test_links_to_the_code(repository, expected):
    from types import SimpleNamespace

    import mkdocs_hooks as site

    page = SimpleNamespace(file=SimpleNamespace(src_uri="faq.md"))
    text = "see [targets](../solo_d2/targets.py), [b](design.md#x)"
    config = SimpleNamespace(repo_url=repository)
    assert site.on_page_markdown(text, page, config, None) == expected
    page = SimpleNamespace(file=SimpleNamespace(src_uri="contributing.md"))
    text = "[a](docs/design.md) [c](https://x.org) ![p](p.png)"
    expected = "[a](design.md) [c](https://x.org) ![p](p.png)"
    assert site.on_page_markdown(text, page, config, None) == expected


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
