"""The commands of bash blocks, checked without being run, by the tools' own parsers."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from docscheck.pages import Block, Page, Problem, default_config
from solo_d2.ablations import command as ablations
from solo_d2.config import load_config, override
from solo_d2.engine import argument_parser
from solo_d2.errors import ConfigError

# Programs that are not part of the project; their arguments are not looked at.
OTHER_PROGRAMS = frozenset(
    ". apt apt-get cat cd cp docker echo export find git head ls mkdir mv pip pre-commit rm "
    "sbatch srun tar tensorboard unzip".split()
)
SEPARATORS = frozenset({"|", "&&", "||", ";", "&"})
ASSIGNMENT = re.compile(r"^[A-Z_][A-Z0-9_]*=")
# Tools whose parser stands elsewhere; the others have a function parse_args(argv).
PARSERS: Mapping[str, Callable[[Sequence[str]], argparse.Namespace]] = {
    "train_net.py": lambda argv: argument_parser().parse_args(argv),
    "tools/ablate.py": ablations.parse_args,
}
MAIN_GUARD = '__name__ == "__main__"'
# Folders whose files must be there before any command has run.
OWN_FOLDERS = ("configs/", "tools/", "demo/", "docs/", "docker/", "tests/", "solo_d2/")


def check_commands(page: Page, root: Path) -> Iterator[Problem]:
    """Check each command of the page's bash blocks."""
    for block in page.blocks:
        if block.language not in ("bash", "sh", "shell", "console"):
            continue
        for text in filter(None, (block.text, block.run_as)):
            for offset, words in _commands(block, text):
                for fault in command_faults(words, root):
                    yield Problem(page.file, block.line + offset, fault)


def _commands(block: Block, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line offset and words of each command, without assignments and redirections."""
    lines = text.split("\n")
    index = 0
    while index < len(lines):
        start, line = index, lines[index]
        while line.endswith("\\") and index + 1 < len(lines):
            index += 1
            line = line[:-1] + " " + lines[index].strip()
        index += 1
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError as error:
            yield start, ["", f"{line.strip()}: {error}"]
            continue
        for part in _split(words):
            yield start, part


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if word in SEPARATORS:
            if part:
                yield part
            part = []
        elif word and set(word) <= set("<>&"):
            skip = True
            if part and part[-1].isdigit():  # as in 2>&1
                part.pop()
        elif skip:
            skip = False  # the file of a redirection
        elif part or not ASSIGNMENT.match(word):
            part.append(word)


def command_faults(words: Sequence[str], root: Path) -> list[str]:
    """What is wrong with a command."""
    program, *arguments = words
    if program == "":
        return arguments
    if program == "make":
        return make_faults(arguments, root)
    if program in ("python", "python3", "torchrun", "nohup", "time"):
        return python_faults(arguments, root)
    if program == "pip":
        return pip_faults(arguments, root)
    return [] if program in OTHER_PROGRAMS else [f"{program} is not known to be a program"]


def make_faults(arguments: Sequence[str], root: Path) -> list[str]:
    """Targets and variables of a call of make."""
    text = (root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^(\w[\w-]*):", text, re.MULTILINE)
    variables = re.findall(r"^# ([A-Z0-9_]+) ", text, re.MULTILINE)
    faults = []
    for word in arguments:
        name, equals, _ = word.partition("=")
        if equals and name not in variables:
            faults.append(f"make has no variable {name}")
        elif not equals and name not in targets:
            faults.append(f"make has no target {name}")
    return faults


def pip_faults(arguments: Sequence[str], root: Path) -> list[str]:
    """Extras of this project that pip is asked for."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^([\w-]+) = \[", text.partition("[project.optional-dependencies]")[2],
                        re.MULTILINE)  # fmt: skip
    asked = [
        extra.strip()
        for word in arguments
        if (match := re.fullmatch(r"(?:\.|solo_d2\S*)\[([\w, -]+)\]", word))
        for extra in match.group(1).split(",")
    ]
    return [f"the project has no extra {extra}" for extra in asked if extra not in extras]


def python_faults(arguments: Sequence[str], root: Path) -> list[str]:
    """Script, options, files and config keys of a call of Python or torchrun."""
    words = list(arguments)
    while words and words[0] not in ("-m", "-c") and not words[0].endswith(".py"):
        words.pop(0)  # options of torchrun, `python` after `time`
    if not words or words[0] == "-c":
        return []
    module = words[0] == "-m"
    script, rest = (words[1], words[2:]) if module else (words[0], words[1:])
    if module and not script.startswith(("solo_d2", "demo")):
        return []
    if not module and not (root / script).is_file():
        return [f"there is no {script}"]
    faults = [
        f"there is no {word}"
        for word in rest
        if word.startswith(OWN_FOLDERS) and not any(root.glob(word.rstrip("/")))
    ]
    try:
        args = parse(script, rest, root, module=module)
    except ParserError as error:
        return [*faults, f"{script}: {error}"]
    return faults + config_faults(args, root)


class ParserError(Exception):
    """A tool refuses its command line."""


def parse(
    script: str, arguments: Sequence[str], root: Path, *, module: bool = False
) -> argparse.Namespace:
    """Read a command line by the tool's own parser; nothing else of the tool is run.

    Args:
        script: path from the project's root, or name of a module.
        arguments: of the tool.
        root: of the project.
        module: whether it is one.

    Raises:
        ParserError: the tool refuses them, or has no `parse_args(argv)`.
    """
    parse_args = PARSERS.get(script) or _find_parser(script, root, module=module)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return parse_args(list(arguments))
    except SystemExit:
        lines = errors.getvalue().strip().splitlines()
        raise ParserError(lines[-1] if lines else "it prints its help") from None


def _find_parser(
    script: str, root: Path, *, module: bool
) -> Callable[[Sequence[str]], argparse.Namespace]:
    """The function `parse_args` of a tool."""
    if not module and MAIN_GUARD not in (root / script).read_text(encoding="utf-8"):
        raise ParserError("it runs when it is imported, so its options can't be checked")
    try:
        if module:
            names = vars(importlib.import_module(_runnable(script)))
        else:
            names = runpy.run_path(str(root / script), run_name="docs")
    except ImportError as error:
        raise ParserError(f"it can't be imported: {error}") from error
    if "parse_args" not in names:
        raise ParserError("it has no parse_args(argv), so its options can't be checked")
    return names["parse_args"]


def _runnable(module: str) -> str:
    """The module that `python -m` runs: of a package its __main__."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ParserError(f"there is no module {module}")
    return module if spec.submodule_search_locations is None else f"{module}.__main__"


def config_faults(args: argparse.Namespace, root: Path) -> list[str]:
    """Whether the overrides KEY VALUE of a command are accepted by its config."""
    opts = list(getattr(args, "opts", None) or [])
    if not opts:
        return []
    file = str(getattr(args, "config_file", "") or "")
    if file.endswith(".py"):
        return lazy_config_faults(root / file, opts)
    try:
        if file and (root / file).is_file():
            load_config(str(root / file), opts)
        else:  # a config that an earlier command writes
            override(default_config(), opts)
    except ConfigError as error:
        return [str(error)]
    return []


def lazy_config_faults(file: Path, opts: Sequence[str]) -> list[str]:
    """Whether the overrides key=value of a command name keys of its Python config."""
    if not file.is_file():
        return []  # said already
    cfg = LazyConfig.load(str(file))
    keys = [opt.partition("=")[0] for opt in opts]
    known = [OmegaConf.select(cfg, key, default=cfg) is not cfg for key in keys]
    return [f"{file.name} has no {key}" for key, is_known in zip(keys, known, strict=True)
            if not is_known]  # fmt: skip
