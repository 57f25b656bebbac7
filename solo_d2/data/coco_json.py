"""Reading of COCO's json files, with errors that name what is wrong. No Detectron2 needed."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from solo_d2.data.json_text import read_json_text, say_once
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.problems import Refusal
from solo_d2.utils.errors import DatasetError, shown

# How many names or ids a message lists.
_LISTED = 5
_LISTS = ("images", "annotations", "categories")
# Keys whose values are whole numbers, lists of them or, of segments, of objects with such keys.
_WHOLE_KEYS = {
    "images": ("id", "height", "width", "not_exhaustive_category_ids", "neg_category_ids"),
    "annotations": ("id", "image_id", "category_id", "iscrowd", "segments_info"),
    "categories": ("id", "isthing"),
}
_SEGMENT_KEYS = ("id", "category_id", "iscrowd")
# Floats below it hold every whole number.
_MOST_EXACT = 2**53
MIXED_IDS = "some ids are numbers and others texts, so they have no order: write all as numbers"
# What a file should be, for messages.
INSTANCES = "an instances"
# Beyond this pycocotools' run lengths do not fit their type.
_MOST_PIXELS = 2**31


def read_text(name: str, json_file: str | Path) -> str:
    """Content of an annotation file.

    Args:
        name: of the data set, for the message; may be empty.
        json_file: the file.

    Raises:
        DatasetError: it is missing, or no text that `read_json_text` reads.
    """
    try:
        return read_json_text(json_file)
    except FileNotFoundError:
        title = f" of data set '{name}'" if name else ""
        raise DatasetError(
            f"The annotation file{title} is missing: looked for {os.path.abspath(json_file)}. "
            + where_datasets_are(name)
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{json_file} cannot be read: {error}") from error


def parse(json_file: str | Path, text: str, kind: str = INSTANCES) -> dict[str, Any]:
    """Parse a COCO json and check that it has its three lists of objects.

    Numbers are normalized, see `normalize`. A file of instances may lack 'annotations', as those of
    COCO's test sets do.

    Args:
        json_file: where the text is from, for messages.
        text: the content.
        kind: what file it should be, with its article, for messages.

    Raises:
        DatasetError: it is not JSON, or something else.
    """
    content = parse_lists(json_file, text, kind)
    for key in _LISTS:
        for place, reason in not_objects(content.get(key, ())):
            raise DatasetError(f"{json_file}: '{key}', entry {place} (from 0): {reason}")
    return content


def parse_lists(json_file: str | Path, text: str, kind: str = INSTANCES) -> dict[str, Any]:
    """The same without a look at the entries of the lists, which may be anything."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        cure = "If it is incomplete, write it again"
        if "Extra data" in str(error):
            cure = "Write one object; several, as in JSON Lines, are not read"
        raise DatasetError(f"{json_file} is not valid JSON ({error}). {cure}") from error
    for key in _LISTS:
        if key == "annotations" and kind == INSTANCES and key not in content:
            continue
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(
                f"{json_file} has no list '{key}', so it is not {kind} file in COCO format"
            )
    normalize(json_file, content)
    return content


def normalize(json_file: str | Path, content: dict[str, Any]) -> None:
    """Bring into one form what can only mean one thing, in place, and log each kind once.

    Ids, sizes and flags such as 1.0 become whole numbers, and names such as 7 texts. Of images and
    categories that are listed twice, with the same content, one is left.

    Args:
        json_file: where the content is from.
        content: lists of entries, which may be anything.
    """
    floats: Counter[str] = Counter()
    for part, keys in _WHOLE_KEYS.items():
        for entry in content.get(part, ()):
            if isinstance(entry, dict):
                _make_whole(entry, keys, floats)
    for key, count in floats.items():
        say_once(json_file, f"has '{key}' as a float such as 1.0 ({count} times), read as 1")
    for entry in content.get("categories", ()):
        if isinstance(entry, dict) and is_whole(entry.get("name")):
            entry["name"] = str(entry["name"])
    for part in ("images", "categories"):
        unique = _without_repeated(content.get(part, ()))
        repeated = len(content.get(part, ())) - len(unique)
        if repeated:
            content[part] = unique
            say_once(
                json_file, f"lists some of '{part}' again ({repeated} times), which is ignored"
            )


def _make_whole(entry: dict[str, Any], keys: Iterable[str], floats: Counter[str]) -> None:
    """Make whole numbers of the values of some keys, in place; floats are counted by key."""

    def whole(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer() and abs(value) < _MOST_EXACT:
            floats[key] += 1
            return int(value)
        return value

    for key in keys:
        value = entry.get(key)
        if isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _make_whole(item, _SEGMENT_KEYS, floats)
            entry[key] = [whole(item) for item in value]
        elif isinstance(value, float):
            entry[key] = whole(value)


def _without_repeated(entries: Sequence[Any]) -> list[Any]:
    """Entries without those that equal an earlier one of the same id."""
    first: dict[int | str, Any] = {}
    kept = []
    for entry in entries:
        key = entry.get("id") if isinstance(entry, dict) else None
        if is_id(key):
            if key in first and first[key] == entry:
                continue
            first.setdefault(key, entry)
        kept.append(entry)
    return kept


def not_objects(entries: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """Places of entries that are no objects, each with what is wrong."""
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield place, f"every entry must be an object, it is {shown(entry)}"


def read_sorted_categories(json_file: str | Path) -> list[dict[str, Any]]:
    """Read the categories of a COCO json, by id, without parsing the rest of it.

    Raises:
        DatasetError: the file is missing, not JSON, or has no proper categories.
    """
    text = read_text("", json_file)
    matches = list(re.finditer(r'"categories"\s*:\s*', text))
    if len(matches) == 1:
        try:
            categories = json.JSONDecoder().raw_decode(text, matches[0].end())[0]
        except (ValueError, RecursionError):
            categories = None
        content = {"categories": categories if isinstance(categories, list) else []}
        normalize(json_file, content)
    else:
        content = parse(json_file, text)
    return sorted_categories(json_file, content["categories"])


def sorted_categories(json_file: str | Path, categories: Any) -> list[dict[str, Any]]:
    """Check the categories of a COCO json, and sort them by id.

    Raises:
        DatasetError: one has no proper id or name, or an id is used twice.
    """
    if not isinstance(categories, list) or not categories or not all(map(is_category, categories)):
        entries = categories if isinstance(categories, list) else []
        wrong = next((f", not {shown(c)}" for c in entries if not is_category(c)), "")
        raise DatasetError(
            f"{json_file}: 'categories' must be a list of objects with an 'id' (whole number or "
            f"text) and a 'name'{wrong}"
        )
    ids = [category["id"] for category in categories]
    require_unique(json_file, "category", ids)
    if mixes_kinds(ids):
        raise DatasetError(f"{json_file}: 'categories': {MIXED_IDS}")
    return sorted(categories, key=lambda category: category["id"])


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a value may be an id: a whole number or a text."""
    return is_whole(value) or isinstance(value, str)


def mixes_kinds(ids: Iterable[int | str]) -> bool:
    """Whether some ids are numbers and others texts."""
    return len({isinstance(key, str) for key in ids}) > 1


def in_order(ids: Iterable[Any]) -> list[Any]:
    """Ids by value, numbers before texts."""
    return sorted(ids, key=lambda key: (isinstance(key, str), key))


def is_category(category: Any) -> bool:
    """Whether an entry of 'categories' has an id and a name."""
    return (
        isinstance(category, dict)
        and is_id(category.get("id"))
        and isinstance(category.get("name"), str)
    )


# Keys of an image. Ids are numbers in COCO, and texts in Cityscapes' panoptic files.
_IMAGE_KEYS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("id", is_id, "whole number or text"),
    ("file_name", lambda value: isinstance(value, str), "text"),
    ("height", is_whole, "whole number"),
    ("width", is_whole, "whole number"),
)


def require_image(image: dict[str, Any]) -> None:
    """Check the id, file name, height and width of an image.

    Raises:
        Refusal: naming the key.
    """
    for key, is_valid, words in _IMAGE_KEYS:
        value = image.get(key)
        if not is_valid(value):
            raise Refusal("image incomplete", f"needs a {words} '{key}', it is {shown(value)}")
    height, width, name = image["height"], image["width"], image["file_name"]
    if height < 1 or width < 1 or height * width > _MOST_PIXELS:
        size = f"{shown(height)} x {shown(width)}"
        reason = f"has an impossible size: {size} pixels (height x width)"
        raise Refusal("image of impossible size", reason)
    if not name or "\0" in name:
        raise Refusal("image incomplete", f"needs a file name, it is {shown(name)}")


def require_unique(json_file: str | Path, what: str, ids: Iterable[Any]) -> None:
    """Check that no id is used twice.

    Raises:
        DatasetError: naming the ids.
    """
    twice = [str(key) for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{json_file}: {len(twice)} {what} ids are used more than once: {some(twice)}. "
            "Give every entry an id of its own"
        )


def some(items: Sequence[Any]) -> str:
    """The first few of many names or ids, for a message."""
    texts = [
        item if isinstance(item, str) and item.isprintable() and len(item) <= 200 else shown(item)
        for item in items[:_LISTED]
    ]
    return ", ".join(texts) + (", ..." if len(items) > _LISTED else "")
