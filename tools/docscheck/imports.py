"""The table of docs/design.md that says which part of the package imports which, from the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from docscheck.pages import Page, Problem, line_of

BEGIN, END = "<!-- imports:begin -->", "<!-- imports:end -->"
PACKAGE = "solo_d2"
# Libraries that only some parts may import.
LIBRARIES = ("detectron2", "triton", "onnxruntime")


def check_imports(page: Page, root: Path) -> Iterator[Problem]:
    """Whether the table of a page, if it has one, is that of the code."""
    if BEGIN in page.text and with_table(page.text, root) != page.text:
        line = line_of(page.text, page.text.index(BEGIN))
        yield Problem(page.file, line, "the imports have changed: tools/check_docs.py --update")


def with_table(text: str, root: Path) -> str:
    """The text of a page with its table of imports made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{import_table(root)}\n{END}{rest.partition(END)[2]}"


def import_table(root: Path) -> str:
    """A Markdown table: each part of the package, its own imports, and those of libraries."""
    lines = ["| part | imports | and |", "|---|---|---|"]
    for part, found in sorted(import_map(root).items()):
        own = sorted(name for name in found if name not in LIBRARIES)
        libraries = sorted(found - set(own))
        cells = (", ".join(f"`{name}`" for name in names) for names in ([part], own, libraries))
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def import_map(root: Path) -> dict[str, set[str]]:
    """What each file or folder right in the package imports, of its siblings and of `LIBRARIES`."""
    result: dict[str, set[str]] = {}
    for file in sorted((root / PACKAGE).rglob("*.py")):
        part = file.relative_to(root / PACKAGE).with_suffix("").parts[0]
        if part != "__init__":
            result.setdefault(part, set()).update(_imports(file) - {part})
    return result


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from solo_d2 import ConfigError` means the part that the name is from.
            names = [str(node.module)] if node.module != PACKAGE else [
                f"{PACKAGE}.{alias.name}" for alias in node.names
            ]  # fmt: skip
        for name in names:
            top, *rest = name.split(".")
            if top == PACKAGE and rest:
                found.add(rest[0])
            elif top in LIBRARIES:
                found.add(top)
    return found
