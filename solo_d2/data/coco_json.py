"""Reading of COCO's json files, with errors that name what is wrong. No Detectron2 needed."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from solo_d2.data.locations import where_datasets_are
from solo_d2.data.problems import Refusal
from solo_d2.errors import DatasetError, shown

# How many names or ids a message lists.
_LISTED = 5
_LISTS = ("images", "annotations", "categories")
# Keys of an image. Ids are numbers in COCO, and texts in Cityscapes' panoptic files.
_IMAGE_KEYS: tuple[tuple[str, Any, str], ...] = (
    ("id", (int, str), "whole number or text"),
    ("file_name", (str,), "text"),
    ("height", (int,), "whole number"),
    ("width", (int,), "whole number"),
)
# Beyond this pycocotools' run lengths do not fit their type.
_MOST_PIXELS = 2**31


def read_text(name: str, json_file: str | Path) -> str:
    """Content of an annotation file.

    Args:
        name: of the data set, for the message; may be empty.
        json_file: the file.

    Raises:
        DatasetError: it is missing, or no UTF-8 text.
    """
    try:
        return Path(json_file).read_text(encoding="utf-8")
    except FileNotFoundError:
        title = f" of data set '{name}'" if name else ""
        raise DatasetError(
            f"The annotation file{title} is missing: looked for {os.path.abspath(json_file)}. "
            + where_datasets_are(name)
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{json_file} cannot be read: {error}") from error


def parse(json_file: str | Path, text: str, kind: str = "an instances") -> dict[str, Any]:
    """Parse a COCO json and check that it has its three lists of objects.

    Args:
        json_file: where the text is from, for messages.
        text: the content.
        kind: what file it should be, with its article, for messages.

    Raises:
        DatasetError: it is not JSON, or something else.
    """
    content = parse_lists(json_file, text, kind)
    for key in _LISTS:
        for place, reason in not_objects(content[key]):
            raise DatasetError(f"{json_file}: '{key}', entry {place} (from 0): {reason}")
    return content


def parse_lists(json_file: str | Path, text: str, kind: str = "an instances") -> dict[str, Any]:
    """The same without a look at the entries of the lists, which may be anything."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{json_file} is not valid JSON ({error}). If it is incomplete, write it again"
        ) from error
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(
                f"{json_file} has no list '{key}', so it is not {kind} file in COCO format"
            )
    return content


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
    else:
        categories = parse(json_file, text)["categories"]
    return sorted_categories(json_file, categories)


def sorted_categories(json_file: str | Path, categories: Any) -> list[dict[str, Any]]:
    """Check the categories of a COCO json, and sort them by id.

    Raises:
        DatasetError: one has no whole number id or no name, or an id is used twice.
    """
    if not isinstance(categories, list) or not categories or not all(map(is_category, categories)):
        raise DatasetError(
            f"{json_file}: 'categories' must be a list of objects with a whole number 'id' and a "
            "'name'"
        )
    require_unique(json_file, "category", [category["id"] for category in categories])
    return sorted(categories, key=lambda category: category["id"])


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_category(category: Any) -> bool:
    """Whether an entry of 'categories' has a whole number id and a name."""
    return (
        isinstance(category, dict)
        and is_whole(category.get("id"))
        and isinstance(category.get("name"), str)
    )


def require_image(image: dict[str, Any]) -> None:
    """Check the id, file name, height and width of an image.

    Raises:
        Refusal: naming the key.
    """
    for key, kinds, words in _IMAGE_KEYS:
        value = image.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise Refusal("image incomplete", f"needs a {words} '{key}', it is {shown(value)}")
    height, width, name = image["height"], image["width"], image["file_name"]
    if height < 1 or width < 1 or height * width > _MOST_PIXELS:
        size = f"{shown(height)} x {shown(width)}"
        reason = f"has an impossible size: {size} pixels (height x width)"
        raise Refusal("image of impossible size", reason)
    if not name or "\0" in name:
        raise Refusal("image incomplete", f"needs a file name, it is {shown(name)}")


def leaves_folder(file_name: str) -> bool:
    """Whether a relative name means a file outside the folder that it is relative to."""
    path = os.path.normpath(file_name)
    return os.path.isabs(path) or path.split(os.sep)[0] == os.pardir


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
