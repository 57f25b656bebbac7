"""Rules for values of config keys, and types by examples."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from solo_d2.utils.errors import ConfigError, shown

# Errors of yacs and Detectron2 for values that cannot be merged.
MERGE_ERRORS = (KeyError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)


class Rule(NamedTuple):
    """A test for a value of the right type, and the allowed values, to follow "must be"."""

    holds: Callable[[Any], bool]
    allowed: str


def between(low: float, high: float, unit: str = "") -> Rule:
    """Allow `low` to `high`, both inclusive."""
    return Rule(lambda value: low <= value <= high, f"from {low} to {high}{unit}")


def at_least(low: float, unit: str = "") -> Rule:
    """Allow `low` or more, but finite."""
    return Rule(lambda value: low <= value < math.inf, f"at least {low}{unit}")


def above(low: float, high: float = math.inf) -> Rule:
    """Allow more than `low`, and at most `high`."""
    limit = "" if high == math.inf else f", at most {high}"
    return Rule(lambda value: low < value <= high, f"above {low}{limit}")


def one_of(choices: Collection[Any]) -> Rule:
    """Allow one of several values."""
    return Rule(lambda value: value in choices, f"one of {tuple(choices)}")


def each(rule: Rule, *, length: int | None = None, empty: bool = False) -> Rule:
    """Allow a list of `length` or any number of values (with `empty`, 0 too) that follow a rule."""
    count = "any number of" if empty else "one or more"

    def holds(values: Any) -> bool:
        fits = len(values) == length if length is not None else empty or len(values) > 0
        return fits and all(rule.holds(value) for value in values)

    return Rule(holds, f"{length or count} values, each {rule.allowed}")


PROBABILITY = Rule(lambda value: 0 <= value <= 1, "a probability in [0, 1]")


def require(holds: bool, key: str, value: Any, allowed: str) -> None:
    """Raise a ConfigError that names key, value and allowed values, unless `holds`."""
    if not holds:
        raise ConfigError(f"{key} is {shown(value)}, but must be {allowed}")


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and value of every key of a config, without sections."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def wrong_type(value: Any, example: Any) -> str | None:
    """Return the required type if a value does not have the type of an example, else None.

    Integers are valid numbers. The example None allows a number or None, an empty list any list,
    and another list elements of the type of its first element.
    """
    if isinstance(example, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return "a list"
        wrong = (wrong_type(element, example[0]) for element in value) if example else ()
        allowed = next(filter(None, wrong), None)
        return f"a list with elements that are {allowed}" if allowed else None
    boolean = isinstance(value, bool)
    number = isinstance(value, (int, float)) and not boolean and value == value  # NaN is none
    right, allowed = {
        bool: (boolean, "True or False"),
        str: (isinstance(value, str), "a string"),
        int: (isinstance(value, int) and not boolean, "an integer"),
        type(None): (number or value is None, "None or a number"),
    }.get(type(example), (number, "a number"))
    return None if right else allowed


def merge_reason(error: Exception, cfg: Mapping[str, Any]) -> str:
    """Explain on one line why a merge failed, with keys similar to an unknown one."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    unknown = re.fullmatch(r"Non-existent (?:config )?key: (\S+)", text)
    if unknown:
        keys = {key.upper(): key for key, _ in leaves(cfg)}
        close = [keys[x] for x in get_close_matches(unknown[1].upper(), keys, n=3, cutoff=0.8)]
        hint = f"; there is {', '.join(close)}" if close else ""
        return f"{text}{hint}; custom keys require --import MODULE (docs/extending.md)"
    types = re.escape("Type mismatch (<class 'float'> vs. <class 'int'>)")
    number = re.fullmatch(rf"{types} .* vs. (-?\d+)\) for config key: (\S+)", text)
    if number:
        return f"{number[2]} is {number[1]}, but must have a decimal point: {number[1]}.0"
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or refers to itself (_BASE_)"
    if isinstance(error, (TypeError, AttributeError)) or not text:
        return f"{type(error).__name__}: {text}"
    return text
