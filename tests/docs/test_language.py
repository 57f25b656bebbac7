"""The glossary of CONTRIBUTING.md holds in docs, comments and docstrings; part of `make lint`."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = re.compile(r"<!-- glossary:begin -->\n(.*?)<!-- glossary:end -->", re.DOTALL)
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "configs/**/*.md")
CODE = ("solo_d2/**/*.py", "tools/**/*.py", "demo/**/*.py", "configs/**/*.py", "configs/**/*.yaml")
FILES = [file for pattern in (*PAGES, *CODE) for file in sorted(ROOT.glob(pattern))]


def rejected_phrases():
    """The phrases of the column "not", by what to use instead."""
    (table,) = GLOSSARY.findall((ROOT / "CONTRIBUTING.md").read_text())
    rows = [line.strip("| \n").split(" | ") for line in table.splitlines()[2:]]
    return {phrase: use for use, phrases in rows for phrase in phrases.split(", ")}


def faults(text, phrases):
    """Return the rejected phrases in a text, whatever its line breaks and comment signs."""
    words = re.sub(r"\s+(# )?\s*", " ", text).lower()
    return [
        f"{phrase!r}: use {use!r}"
        for phrase, use in phrases.items()
        if re.search(rf"\b{re.escape(phrase.lower())}", words)
    ]


def test_glossary_is_read():
    phrases = rejected_phrases()
    assert len(phrases) >= 30
    assert faults("a\n    # mask has\n    # no say", phrases)
    assert not faults("Exact duplicates do not suppress other masks.", phrases)


@pytest.mark.parametrize("folder", ["solo_d2", "tools", "demo", "configs", "docs"])
def test_no_rejected_phrase(folder):
    phrases = rejected_phrases()
    found = []
    for file in FILES:
        part = file.relative_to(ROOT).parts[0]
        if part == folder or (folder == "docs" and file.suffix == ".md"):
            text = GLOSSARY.sub("", file.read_text())
            found += [f"{file.relative_to(ROOT)}: {fault}" for fault in faults(text, phrases)]
    assert found == []
