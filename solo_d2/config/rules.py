"""What the value of a config key may be: rules, and types by examples."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from solo_d2.utils.errors import ConfigError, shown

# What yacs and Detectron2 raise for what they cannot merge.
MERGE_ERRORS = (KeyError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)


class Rule(NamedTuple):
    """A test of a key's value of the right type, and what it allows, after "must be"."""

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
    """A list of `length` values, or of any number, that all follow a rule; perhaps of none."""
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
    """Yield every key of a config that is no section, in full, with its value."""
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
        if not isinstance(value, (list, tuple)):
            return "a list"
        wrong = (wrong_type(element, example[0]) for element in value) if example else ()
        allowed = next(filter(None, wrong), None)
        return f"a list of which each element is {allowed}" if allowed else None
    boolean = isinstance(value, bool)
    number = isinstance(value, (int, float)) and not boolean and value == value  # NaN is none
    right, allowed = {
        bool: (boolean, "True or False"),
        str: (isinstance(value, str), "a text"),
        int: (isinstance(value, int) and not boolean, "a whole number"),
        type(None): (number or value is None, "None or a number"),
    }.get(type(example), (number, "a number"))
    return None if right else allowed


def merge_reason(error: Exception, cfg: Mapping[str, Any]) -> str:
    """Why something could not be merged into a config, on one line, with keys like unknown ones."""
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
