"""Check commands without running them: files, options, config keys, by each tool's parser."""

import contextlib
import importlib
import io
import re
import runpy
import shlex
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from solo_d2.config import default_config, load_config, override
from solo_d2.engine import argument_parser
from solo_d2.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
# Folders whose files exist before any command has run.
FOLDERS = ("configs/", "tools/", "demo/", "docs/", "docker/", "tests/", "solo_d2/")
# Programs whose arguments are not checked.
OTHER_PROGRAMS = frozenset(
    ". ./detect apt apt-get cat cd cp docker echo exit export find g++ git head ls mkdir mv npm "
    "pip pre-commit pytest rm sbatch srun tar tensorboard test unzip".split()
)


def commands(source):
    """Yield the words of each command of a shell script, without assignments and redirections."""
    for line in re.sub(r"\\\n", " ", source).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words, skip = [], False
        for word in [*lexer, ";"]:
            if word and set(word) <= set("<>&") and word != "&&":  # a redirection
                skip = True
                if words and words[-1].isdigit():
                    words.pop()
            elif word and set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            elif skip:
                skip = False
            elif words or not re.match(r"[A-Z_][A-Z0-9_]*=", word):
                words.append(word)


def faults(words):
    """Return what is wrong with the words of a command."""
    program, *arguments = words
    if program == "make":
        text = (ROOT / "Makefile").read_text()
        known = re.findall(r"^(?:# )?([\w-]+)(?=:.* # | {2,}\S)", text, re.MULTILINE)
        names = [word.partition("=")[0] for word in arguments]
        return [f"make has no {name}" for name in names if name not in known]
    if program in ("python", "python3", "torchrun", "nohup", "time"):
        return python_faults(arguments)
    return [] if program in OTHER_PROGRAMS else [f"unknown program {program}"]


def python_faults(arguments):
    """Return what is wrong with the script, options, files and config keys of a command."""
    start = next((i for i, a in enumerate(arguments) if a in ("-m", "-c") or a.endswith(".py")), -1)
    if start < 0 or arguments[start] == "-c":
        return []
    module = arguments[start] == "-m"
    script, *rest = arguments[start + module :]
    if module and not script.startswith(("solo_d2", "demo")):
        return []
    missing = [a for a in [*([] if module else [script]), *rest] if a.startswith(FOLDERS)]
    missing = [f"there is no {a}" for a in missing if not any(ROOT.glob(a.rstrip("/")))]
    if missing:
        return missing
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            args = parser(script, module)(rest)
    except SystemExit:
        return [f"{script}: {errors.getvalue().strip().splitlines()[-1]}"]
    opts = list(getattr(args, "opts", None) or [])
    return config_faults(str(getattr(args, "config_file", "") or ""), opts) if opts else []


def parser(script, module):
    """Return the function that parses the arguments of a script or module."""
    if script == "train_net.py":
        return argument_parser().parse_args
    if not module:
        return runpy.run_path(str(ROOT / script), run_name="docs")["parse_args"]
    found = importlib.import_module(script)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{script}.__main__")
    return found.parse_args


def config_faults(file, opts):
    """Return what is wrong with config overrides: pairs KEY VALUE, or key=value of a .py file."""
    if file.endswith(".py"):
        cfg = LazyConfig.load(str(ROOT / file))
        keys = [opt.partition("=")[0] for opt in opts]
        return [f"no key {k}" for k in keys if OmegaConf.select(cfg, k, default=cfg) is cfg]
    try:
        if file and (ROOT / file).is_file():
            load_config(str(ROOT / file), opts)
        else:  # an earlier command writes this config
            override(default_config(), opts)
    except ConfigError as error:
        return [str(error)]
    return []
