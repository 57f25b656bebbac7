"""Errors that tell users what to change; any other error is a bug."""

from collections.abc import Collection
from typing import Any

# Characters of a value in a message.
_MOST_SHOWN = 200


class ConfigError(ValueError):
    """A config key is invalid; the message names key, value and allowed values."""


class DatasetError(RuntimeError):
    """A data set, annotation or image cannot be used; the message names the file and a fix."""


class UnreadableImageError(DatasetError):
    """An image file is missing, damaged or not an image; others of the data set can be used."""

    def __init__(self, message: str, file: str = "", reason: str = ""):
        """Create the error; the message contains file and reason too."""
        super().__init__(message)
        self.file, self.reason = file, reason


class BadNumbersError(FloatingPointError):
    """Losses or gradients are infinite or NaN; the message names iteration, terms and images."""


def listed(items: Collection[str], most: int = 20) -> str:
    """Join the first items for a message, with the number of the others."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(list(items)[:most]) + more


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"


def shown(value: Any) -> str:
    """Return a user's value for a message: printable, on one line, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers with thousands of digits
        return "a huge number"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
