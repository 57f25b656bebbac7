"""Markdown pages taken apart: fenced blocks, links, inline code; and checks of what they name."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from solo_d2 import add_solo_config

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
# The last line before a fence may say how its block is run; readers of the page do not see it.
MARK = re.compile(r"<!--\s*(not run|run as):\s*((?:(?!-->).)+?)\s*-->\Z", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
CONFIG_KEY = re.compile(r"^[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+$")


@dataclass(frozen=True)
class Problem:
    """Something in a page that does not hold."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its first line of content.
        language: after the fence; may be empty.
        text: between the fences.
        skip: why it is not run by `--run`; empty: it is.
        run_as: what is run instead of it; empty: itself.
    """

    line: int
    language: str
    text: str
    skip: str = ""
    run_as: str = ""


@dataclass(frozen=True)
class Page:
    """A Markdown file.

    Attributes:
        file: its path.
        text: its content.
        blocks: the fenced ones, in order.
    """

    file: Path
    text: str
    blocks: tuple[Block, ...]

    @property
    def prose(self) -> str:
        """The text with its fenced blocks blanked; lines keep their numbers."""
        return FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), self.text)


def read_page(file: Path) -> Page:
    """Read a Markdown file."""
    text = file.read_text(encoding="utf-8")
    return Page(file, text, tuple(_blocks(text)))


def _blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()].rstrip())
        kind, words = mark.groups() if mark else ("", "")
        yield Block(
            line=line_of(text, match.start(2)),
            language=match.group(1),
            text=match.group(2),
            skip=words if kind == "not run" else "",
            run_as=words if kind == "run as" else "",
        )


def line_of(text: str, position: int) -> int:
    """The line of a position, counted from 1."""
    return text.count("\n", 0, position) + 1


def slug(heading: str) -> str:
    """The anchor of a heading."""
    words = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words.strip().lower()))


def check_links(page: Page) -> Iterator[Problem]:
    """Links and images inside the project lead to a file, and to a heading of it."""
    for match in LINK.finditer(page.prose):
        target, _, anchor = match.group(1).partition("#")
        line = line_of(page.text, match.start())
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.file.parent / target).resolve() if target else page.file
        if not file.exists():
            yield Problem(page.file, line, f"the link {target} leads nowhere")
        elif anchor and file.suffix == ".md":
            headings = HEADING.findall(read_page(file).prose)
            if anchor not in map(slug, headings):
                yield Problem(page.file, line, f"{file.name} has no heading #{anchor}")


def check_inline_code(page: Page, root: Path) -> Iterator[Problem]:
    """Files of the project and config keys that are named in the text exist."""
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    folders -= {"output", "datasets", "shared", "build"}
    keys = config_keys()
    for match in INLINE_CODE.finditer(page.prose):
        words = match.group(1).split()
        line = line_of(page.text, match.start())
        for word in words[:1]:
            if CONFIG_KEY.match(word) and not _is_config_key(word, keys):
                yield Problem(page.file, line, f"there is no config key {word}")
            path = word.rstrip(",;:")
            in_project = path.partition("/")[0] in folders and re.fullmatch(r"[\w./*-]+", path)
            if "/" in path and in_project and not any(root.glob(path.rstrip("/"))):
                yield Problem(page.file, line, f"there is no file {path}")


def _is_config_key(word: str, keys: Collection[str]) -> bool:
    return any(key == word or key.endswith(f".{word}") for key in keys)


def config_keys() -> set[str]:
    """Every key and section of Detectron2's config and ours, in full."""
    return set(_keys(default_config(), ""))


def default_config() -> CfgNode:
    """Detectron2's config with our keys."""
    cfg = get_cfg()
    add_solo_config(cfg)
    return cfg


def _keys(node: CfgNode, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def check_other_blocks(page: Page) -> Iterator[Problem]:
    """Python and YAML blocks can be read, and what they import or set exists."""
    for block in page.blocks:
        faults: Iterable[str] = ()
        if block.language == "python":
            faults = python_faults(block.text)
        elif block.language in ("yaml", "yml"):
            faults = yaml_faults(block.text)
        for fault in faults:
            yield Problem(page.file, block.line, fault)


def python_faults(source: str) -> list[str]:
    """What is wrong with a piece of Python: its syntax, or what it imports of this project."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [f"this Python has a fault: {error}"]
    faults = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        module = str(node.module)
        if module.partition(".")[0] not in ("solo_d2", "demo", "detectron2"):
            continue
        names = ", ".join(alias.name for alias in node.names)
        try:
            exec(f"from {module} import {names}", {})  # noqa: S102
        except ImportError as error:
            faults.append(f"this import fails: {error}")
    return faults


def yaml_faults(source: str) -> list[str]:
    """What is wrong with a piece of a config; other YAML has only to be read."""
    try:
        content: Any = yaml.safe_load(source)
    except yaml.YAMLError as error:
        return [f"this YAML has a fault: {' '.join(str(error).split())}"]
    cfg = default_config()
    if not isinstance(content, dict) or not set(content) & set(cfg):
        return []
    content.pop("_BASE_", None)
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except (KeyError, ValueError, AssertionError) as error:
        return [f"this config is refused: {error}"]
    return []
