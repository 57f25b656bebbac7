"""YAML files of configs, looked at before they are read: those of strangers are no reason to wait.

An alias (`*name`) stands for a whole part of the file, and Detectron2 copies that part for each: a
file of a few lines can mean billions of keys. No Detectron2 needed.
"""

import os
from collections.abc import Callable
from typing import IO, Any

import yaml

from solo_d2.utils.errors import ConfigError

# Characters of a file, entries that it may mean with all its aliases (ours have some hundred, and
# seven for each class of MODEL.CLASSES), and files that one may be based on, each as often as it is
# named.
_LONGEST, _MOST_ENTRIES, _MOST_FILES = 2**20, 100_000, 100
BASE = "_BASE_"


def check_config_files(config_file: str, open_text: Callable[[str], IO[Any]]) -> None:
    """Look at a config and all that it is based on.

    Args:
        config_file: path or URL.
        open_text: opens both.

    Raises:
        ConfigError: a file is too large, means too much, or is based on itself.
        OSError: a file cannot be opened.
        yaml.YAMLError: one is no YAML.
        RecursionError: one is nested too deeply.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = [(config_file, ())]
    for _ in range(_MOST_FILES):
        if not waiting:
            return
        file, above = waiting.pop()
        name = file if "://" in file else os.path.realpath(file)
        if name in above:
            raise ConfigError(f"{file} is based on itself: change {BASE} there")
        with open_text(file) as opened:
            text = opened.read(_LONGEST + 1)
        waiting += [(base, (*above, name)) for base in _check(file, text)]
    raise ConfigError(f"{config_file} is based on more than {_MOST_FILES} files")


def _check(file: str, text: str) -> list[str]:
    """Look at a file; what it is based on."""
    if len(text) > _LONGEST:
        raise ConfigError(f"{file} has more than {_LONGEST} characters, so it is no config")
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        return []
    if _count(node, {}) > _MOST_ENTRIES:
        raise ConfigError(
            f"{file} means more than {_MOST_ENTRIES} entries, by aliases (*name) of aliases: write "
            "out what is meant"
        )
    bases = map(os.path.expanduser, _bases(node))
    remote = ("/", "https://", "http://")
    return [b if b.startswith(remote) else os.path.join(os.path.dirname(file), b) for b in bases]


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Entries of a part with all its aliases; `known` are those of its parts, by identity."""
    if id(node) not in known:
        known[id(node)] = _MOST_ENTRIES + 1  # for one that has itself as a part
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def _bases(node: yaml.Node) -> list[str]:
    """What the file is based on; Detectron2 refuses values of another kind."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    values = [value for key, value in pairs if key.value == BASE]
    nodes = [x for v in values for x in (v.value if isinstance(v, yaml.SequenceNode) else [v])]
    return [x.value for x in nodes if isinstance(x, yaml.ScalarNode) and x.value]
