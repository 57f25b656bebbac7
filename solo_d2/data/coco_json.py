"""Read COCO JSON files, with errors that name file, entry and key. Does not import Detectron2.

`FIELDS` describes the keys of the entries of each list; panoptic and LVIS files have more.
"""

import functools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from solo_d2.data.locations import where_datasets_are
from solo_d2.data.problems import Problem, Refusal, Report, refuse_errors
from solo_d2.utils.errors import DatasetError, shown

logger = logging.getLogger(__name__)

_GZIP = b"\x1f\x8b"
# Maximum number of names or ids in a message.
_LISTED = 5
# Keys of integers, of lists of them and, for `segments_info`, of lists of objects.
_WHOLE_KEYS = {
    "images": ("id", "height", "width", "not_exhaustive_category_ids", "neg_category_ids"),
    "annotations": ("id", "image_id", "category_id", "iscrowd", "segments_info"),
    "categories": ("id", "isthing"),
    "segments_info": ("id", "category_id", "iscrowd"),
}
# Floats represent all integers below this.
_MOST_EXACT = 2**53
# Maximum number of pixels that the run lengths of pycocotools can represent.
_MOST_PIXELS = 2**31


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value can be a file name."""
    return isinstance(value, str) and "\0" not in value


def is_id(value: Any) -> TypeGuard[int | str]:
    """Return whether a value can be an id: an integer or, as in panoptic Cityscapes, a string."""
    return is_whole(value) or isinstance(value, str)


class Field(NamedTuple):
    """A key of an entry, a description of valid values, and their check (None: missing)."""

    key: str
    allowed: str
    holds: Callable[[Any], bool]
    optional: bool = False


ID = Field("id", "a whole number or a text", is_id)
IMAGE_ID = Field("image_id", ID.allowed, is_id)
CATEGORY_ID = Field("category_id", ID.allowed, is_id)
ISCROWD = Field("iscrowd", "0 or 1", lambda value: value in (0, 1), optional=True)
_NAME = Field("name", "a text", lambda value: isinstance(value, str))
_FILE_NAME = Field("file_name", "the name of a file", lambda value: is_name(value) and value != "")
_IGNORE = Field("ignore", "left out or false; mark groups by 'iscrowd'", lambda value: not value)
_HEIGHT, _WIDTH = (
    Field(
        key,
        f"a whole number from 1 to {_MOST_PIXELS}",
        lambda value: is_whole(value) and 0 < value <= _MOST_PIXELS,
    )
    for key in ("height", "width")
)
FIELDS: dict[str, tuple[Field, ...]] = {
    "images": (ID, _FILE_NAME, _HEIGHT, _WIDTH),
    "annotations": (ID, IMAGE_ID, CATEGORY_ID, ISCROWD, _IGNORE),
    "categories": (ID, _NAME),
}


def load_json(file: str | Path) -> Any:
    """Parse a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises OSError, RecursionError if it is nested too deeply, or ValueError if it is not JSON, has
    another encoding or is compressed.
    """
    return json.loads(_decode(file)[0])


def _decode(file: str | Path) -> tuple[str, str]:
    """Return the text of a JSON file, without a byte order mark, and its encoding."""
    data = Path(file).read_bytes()
    if data.startswith(_GZIP):
        raise ValueError("it is compressed with gzip. Decompress it (gunzip)")
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {encoding} text ({error}). Save it as UTF-8") from error


@functools.cache
def log_once(file: str | Path, what: str) -> None:
    """Log once per process how an unusual file is read."""
    logger.warning("%s %s", file, what)


def read_lists(
    json_file: str | Path, report: Report, name: str = "", *, panoptic: bool = False
) -> dict[str, Any]:
    """Read a COCO JSON and check that it has its three lists.

    Unambiguous values of another type are converted, such as 1.0 to 1.

    Args:
        json_file: the file. An instances file may lack 'annotations', as those of test sets do.
        report: receives entries that are not objects, which are then skipped.
        name: name of the data set for messages; may be empty.
        panoptic: whether a panoptic file is expected.

    Raises:
        DatasetError: the file is missing, not JSON, or has another format.
    """
    text = _read_text(name, json_file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        cure = "If it is truncated, write it again"
        if "Extra data" in str(error):
            cure = "It must be one object; JSON Lines are not supported"
        raise DatasetError(f"{json_file} is not valid JSON ({error}). {cure}") from error
    for part in FIELDS:
        if part == "annotations" and not panoptic and part not in content:
            continue
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            kind = "a panoptic" if panoptic else "an instances"
            raise DatasetError(
                f"{json_file} has no list '{part}', so it is not {kind} file in COCO format"
            )
        for place, entry in enumerate(content[part]):
            if not isinstance(entry, dict):
                reason = f"every entry must be an object, it is {shown(entry)}"
                report(Problem("entry of another form", _place(part, place), reason))
        content[part] = [entry for entry in content[part] if isinstance(entry, dict)]
    if not panoptic and any("segments_info" in entry for entry in content.get("annotations", [])):
        raise DatasetError(
            f"{json_file} is a panoptic file ('segments_info'), not one of instances: pass it with "
            "--train-panoptic-json or --val-panoptic-json, or in DATASETS.COCO_PANOPTIC_FORMAT"
        )
    _normalize(json_file, content)
    return content


def _read_text(name: str, json_file: str | Path) -> str:
    try:
        text, encoding = _decode(json_file)
    except FileNotFoundError:
        title = f" of data set '{name}'" if name else ""
        raise DatasetError(
            f"The annotation file{title} is missing: looked for {os.path.abspath(json_file)}. "
            + where_datasets_are(name)
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{json_file} cannot be read: {error}") from error
    if encoding != "utf-8":
        log_once(json_file, f"is read as {encoding}")
    return text


def _place(part: str, place: int) -> str:
    return f"'{part}', entry {place} (from 0)"


def _normalize(json_file: str | Path, content: dict[str, list[dict[str, Any]]]) -> None:
    """Convert unambiguous values of another type, in place, and log each kind once."""
    floats: Counter[str] = Counter()
    for part in FIELDS:
        entries = content.get(part, [])
        for entry in entries:
            _make_whole(entry, part, floats)
        if part != "annotations":
            content[part] = _without_repetitions(entries)
            repeated = len(entries) - len(content[part])
            if repeated:
                what = f"lists some of '{part}' again ({repeated} times), which is ignored"
                log_once(json_file, what)
    for category in content["categories"]:
        if is_whole(category.get("name")):
            category["name"] = str(category["name"])
    for key, count in floats.items():
        log_once(json_file, f"has '{key}' as a float such as 1.0 ({count} times), read as 1")


def _without_repetitions(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove repetitions of entries with the same id and content."""
    first: dict[int | str, Any] = {}
    unique = []
    for entry in entries:
        key = entry.get("id")
        known = first.setdefault(key, entry) if is_id(key) else entry
        if known is entry or known != entry:
            unique.append(entry)
    return unique


def _make_whole(entry: dict[str, Any], part: str, floats: Counter[str]) -> None:
    """Convert floats such as 1.0 to integers, in place, and count them by key."""

    def whole(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer() and abs(value) < _MOST_EXACT:
            floats[key] += 1
            return int(value)
        if isinstance(value, dict) and key == "segments_info":
            _make_whole(value, key, floats)
        return value

    for key in _WHOLE_KEYS[part]:
        value = entry.get(key)
        if isinstance(value, list):
            entry[key] = [whole(item) for item in value]
        elif isinstance(value, float):
            entry[key] = whole(value)


def usable_entries(
    entries: Iterable[dict[str, Any]],
    part: str,
    report: Report,
    *,
    fields: Sequence[Field] | None = None,
    within: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a list with valid `fields` (None for `FIELDS`) and unique ids.

    The others are reported; `within` precedes the name of an entry in the report.
    """
    fields = FIELDS[part] if fields is None else fields
    what = {"categories": "category", "segments_info": "segment"}.get(part, part[:-1])
    seen: set[int | str] = set()
    for place, entry in enumerate(entries):
        wrong = next((field for field in fields if not _is_allowed(entry, field)), None)
        if wrong is None and entry["id"] not in seen:
            seen.add(entry["id"])
            yield entry
            continue
        where = f"{within}{what} {shown(entry.get('id'))}"
        kind = f"{what} id used more than once"
        reason = f"the id is used more than once: give every {what} an id of its own"
        if wrong is not None:
            kind = f"{what} with an invalid '{wrong.key}'"
            reason = f"'{wrong.key}' must be {wrong.allowed}, it is {shown(entry.get(wrong.key))}"
            if wrong.key == "id":  # use the index instead
                where = f"{within}{_place(part, place)}"
        report(Problem(kind, where, reason))


def _is_allowed(entry: dict[str, Any], field: Field) -> bool:
    if field.optional and field.key not in entry:
        return True
    return field.holds(entry.get(field.key))


def require_possible_size(image: dict[str, Any]) -> None:
    """Raise Refusal for an image of more pixels than a mask can have."""
    if image["height"] * image["width"] > _MOST_PIXELS:
        reason = f"{image['height']} x {image['width']} pixels (height x width) are too many"
        raise Refusal("image of impossible size", reason)


def sorted_categories(
    categories: Any, report: Report, fields: Sequence[Field] | None = None
) -> list[dict[str, Any]]:
    """Check the categories of a COCO JSON; return the usable ones by id (see `usable_entries`)."""
    found = list(usable_entries(categories, "categories", report, fields=fields))
    if not found:
        report(Problem("no categories", "'categories'", "the list has no usable entry"))
    if len({isinstance(category["id"], str) for category in found}) > 1:
        reason = "some ids are numbers and others texts, so they have no order: write all alike"
        report(Problem("category ids of two kinds", "'categories'", reason))
    return sorted(found, key=lambda category: _order(category["id"]))


def read_sorted_categories(
    json_file: str | Path, fields: Sequence[Field] | None = None
) -> list[dict[str, Any]]:
    """Read the categories of a COCO JSON by id, without parsing the rest of a large file.

    Raises DatasetError if the file is missing, not JSON, or has no valid categories.
    """
    text = _read_text("", json_file)
    refuse = refuse_errors(json_file)
    matches = list(re.finditer(r'"categories"\s*:\s*', text))
    if len(matches) != 1:
        return sorted_categories(read_lists(json_file, refuse)["categories"], refuse, fields)
    try:
        found = json.JSONDecoder().raw_decode(text, matches[0].end())[0]
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DatasetError(f"{json_file}: 'categories' must be a list of objects")
    content = {"categories": found}
    _normalize(json_file, content)
    return sorted_categories(content["categories"], refuse, fields)


def _order(key: int | str) -> tuple[bool, Any]:
    return isinstance(key, str), key


def in_order(ids: Iterable[Any]) -> list[Any]:
    """Sort ids, integers before strings."""
    return sorted(ids, key=_order)


def is_category(category: Any) -> bool:
    """Return whether a value is a category with valid id and name."""
    return isinstance(category, dict) and all(
        field.holds(category.get(field.key)) for field in FIELDS["categories"]
    )


def some(items: Sequence[Any]) -> str:
    """Format the first few names or ids for a message."""
    texts = [
        item if isinstance(item, str) and item.isprintable() and len(item) <= 200 else shown(item)
        for item in items[:_LISTED]
    ]
    return ", ".join(texts) + (", ..." if len(items) > _LISTED else "")
