"""What the value of a config key may be: rules, and types by examples."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from solo_d2.utils.errors import ConfigError, shown

# What yacs and Detectron2 raise for what they cannot merge.
MERGE_ERRORS = (KeyError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)


@dataclass(frozen=True)
class Rule:
    """A test of a key's value.

    Attributes:
        holds: whether a value of the right type may be.
        allowed: the same in words, after "must be".
    """

    holds: Callable[[Any], bool]
    allowed: str


def between(low: float, high: float, unit: str = "") -> Rule:
    """From `low` to `high`, both included."""
    return Rule(lambda value: low <= value <= high, f"from {low} to {high}{unit}")


def at_least(low: float, unit: str = "") -> Rule:
    """`low` or more, but finite."""
    return Rule(lambda value: low <= value < math.inf, f"at least {low}{unit}")


def above(low: float, high: float = math.inf) -> Rule:
    """More than `low`, and at most `high`."""
    limit = "" if high == math.inf else f", at most {high}"
    return Rule(lambda value: low < value <= high, f"above {low}{limit}")


def one_of(choices: Collection[Any]) -> Rule:
    """One of a few values."""
    return Rule(lambda value: value in choices, f"one of {tuple(choices)}")


def each(rule: Rule, *, length: int | None = None, empty: bool = False) -> Rule:
    """A list of values that all follow a rule.

    Args:
        rule: of each value.
        length: how many there must be; None for any number.
        empty: whether there may be none.
    """
    count = "any number of" if empty else "one or more"

    def holds(values: Any) -> bool:
        fits = len(values) == length if length is not None else empty or len(values) > 0
        return fits and all(rule.holds(value) for value in values)

    return Rule(holds, f"{length or count} values, each {rule.allowed}")


PROBABILITY = Rule(lambda value: 0 <= value <= 1, "a probability in [0, 1]")


def require(holds: bool, key: str, value: Any, allowed: str) -> None:
    """Raise a ConfigError that names key, value and what is allowed, unless it holds."""
    if not holds:
        raise ConfigError(f"{key} is {shown(value)}, but must be {allowed}")


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config that is no section, in full, with its value."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def similar(key: str, keys: Iterable[str]) -> str:
    """The end of a message about an unknown key: keys that are written alike."""
    close = get_close_matches(key, list(keys), n=3, cutoff=0.8)
    return f"; there is {', '.join(close)}" if close else ""


def wrong_type(value: Any, example: Any) -> str | None:
    """What a value must be to have the type of an example; None if it has it.

    Whole numbers pass for other numbers. An example of None stands for a number or None, one of an
    empty list for a list of anything, and another list's elements are like its first.
    """
    if isinstance(example, (list, tuple)):
        return _wrong_list(value, example)
    if isinstance(example, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(example, str):
        return None if isinstance(value, str) else "a text"
    if isinstance(example, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole else "a whole number"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (number and value == value) or (example is None and value is None):  # NaN is no number
        return None
    return "a number" if example is not None else "None or a number"


def _wrong_list(value: Any, example: list[Any] | tuple[Any, ...]) -> str | None:
    if not isinstance(value, (list, tuple)):
        return "a list"
    wrong = (wrong_type(element, example[0]) for element in value) if example else ()
    allowed = next((allowed for allowed in wrong if allowed), None)
    return f"a list of which each element is {allowed}" if allowed else None


def merge_reason(error: Exception, cfg: Mapping[str, Any]) -> str:
    """Why something could not be merged into a config, on one line.

    Args:
        error: one of `MERGE_ERRORS`, or of the file or its YAML.
        cfg: into which it should have gone; where a key is unknown, those like it are named.
    """
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    unknown = re.fullmatch(r"Non-existent (?:config )?key: (\S+)", text)
    if unknown:
        close = similar(unknown[1], (key for key, _ in leaves(cfg)))
        return f"{text}{close}; keys of your own need --import MODULE (docs/extending.md)"
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or based on itself (_BASE_)"
    if isinstance(error, (TypeError, AttributeError)) or not text:
        return f"{type(error).__name__}: {text}"
    return text
