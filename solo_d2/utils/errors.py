"""The errors that tell a user what to change; anything else that is raised is a defect of ours."""

from typing import Any

# Characters of a value in a message.
_MOST_SHOWN = 200


class ConfigError(ValueError):
    """A config key cannot work; the message names key, value and what is allowed."""


class DatasetError(RuntimeError):
    """A data set, annotation or image cannot be used; the message names file and cure."""


class UnreadableImageError(DatasetError):
    """An image file is missing, damaged or no image; the others of the data set can be used."""

    def __init__(self, message: str, file: str = "", reason: str = ""):
        """Make the error; the message has both, file and reason are for those who count."""
        super().__init__(message)
        self.file, self.reason = file, reason


class BadNumbersError(FloatingPointError):
    """Training came to infinity or NaN; the message names iteration, loss terms and images."""


def first_line(error: BaseException) -> str:
    """An exception on one line."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"


def shown(value: Any) -> str:
    """A value from outside as messages have it: printable, on one line, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole numbers of thousands of digits
        return "a huge number"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
