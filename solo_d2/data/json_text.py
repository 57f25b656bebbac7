"""Texts of json files in the encodings that tools write. No Detectron2 needed."""

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_GZIP = b"\x1f\x8b"


def read_json_text(file: str | Path, *, quiet: bool = False) -> str:
    """Read UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        file: the file.
        quiet: do not log that it is anything but plain UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another encoding, or is compressed; the message says what to do.
    """
    data = Path(file).read_bytes()
    if data.startswith(_GZIP):
        raise ValueError("it is compressed by gzip. Unpack it (gunzip)")
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)  # without the mark
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no {encoding} text ({error}). Save it as UTF-8") from error
    if encoding != "utf-8" and not quiet:
        what = {"utf-8-sig": "begins with a byte order mark, which is skipped"}
        say_once(file, what.get(encoding, f"is read as {encoding}"))
    return text


def load_json(file: str | Path, *, quiet: bool = False) -> Any:
    """Parse a json file; see `read_json_text`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no json.
        RecursionError: it is nested too deeply.
    """
    return json.loads(read_json_text(file, quiet=quiet))


def say_once(file: str | Path, what: str) -> None:
    """Log how a file is read that is written in an unusual way, once in a process."""
    _log_once(f"{os.fspath(file)} {what}")


@functools.cache
def _log_once(message: str) -> None:
    logger.warning("%s", message)
