"""Labels that training ignores without being asked: crowds, and images without objects.

COCO marks groups of objects by `iscrowd` 1: 1.2 % of the annotations of train2017. Annotation tools
write it for single objects too, if they were drawn with a brush.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from solo_d2.data.coco_json import some
from solo_d2.data.problems import NOTICE, Problem
from solo_d2.utils.errors import shown

logger = logging.getLogger(__name__)

# Shares of crowds, of all annotations and of those of a class, above which they are hardly meant.
CROWD_SHARE, CROWD_SHARE_OF_CLASS = 0.05, 0.5
# Share of images without objects above which they get a warning instead of an info.
EMPTY_SHARE = 0.1


def is_object(annotation: dict[str, Any]) -> bool:
    """Whether training learns from an annotation; it ignores crowds."""
    return annotation.get("iscrowd", 0) == 0


def find_ignored(
    name: str, records: Sequence[dict[str, Any]], class_names: Sequence[str] | None = None
) -> list[Problem]:
    """Say how many annotations are crowds, if there are too many to be meant.

    Args:
        name: of the data set.
        records: Detectron2's dataset dicts.
        class_names: of the K classes, where they are known.
    """
    total: Counter[Any] = Counter()
    crowds: Counter[Any] = Counter()
    examples: list[str] = []
    for record in records:
        for annotation in record.get("annotations") or ():
            category = annotation.get("category_id")
            if not isinstance(category, int):  # another check's business
                category = None
            total[category] += 1
            if not is_object(annotation):
                crowds[category] += 1
                examples.append(shown(annotation.get("id")))
    share = crowds.total() / max(total.total(), 1)
    classes = [key for key in crowds if crowds[key] > CROWD_SHARE_OF_CLASS * total[key]]
    if share <= CROWD_SHARE and not classes:
        return []
    named = [_class_name(key, class_names) for key in classes]
    reason = (
        f"{crowds.total()} of {total.total()} annotations ({share:.1%}) have 'iscrowd' 1 and teach "
        "nothing"
        + f", among them most of class {some(named)}"
        * bool(classes)
        + ". Annotation tools write it for single objects drawn with a brush; set it to 0 for "
        f"all that are no groups: annotation {some(examples)}"
    )
    return [Problem("many crowds", f"data set {shown(name)}", reason, NOTICE)]


def _class_name(key: Any, class_names: Sequence[str] | None) -> str:
    known = class_names is not None and isinstance(key, int) and 0 <= key < len(class_names)
    return shown(class_names[key] if known and class_names is not None else key)


def without_objects(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records whose annotations, if there are any, all are crowds."""
    return [r for r in records if not any(map(is_object, r.get("annotations") or ()))]


def log_ignored(
    name: str, records: Sequence[dict[str, Any]], class_names: Sequence[str] | None = None
) -> None:
    """Log what of a loaded data set training ignores."""
    for problem in find_ignored(name, records, class_names):
        logger.warning("%s", problem)
    if not any("annotations" in record for record in records):
        return
    empty = without_objects(records)
    if empty:
        share = len(empty) / len(records)
        level = logging.WARNING if share > EMPTY_SHARE else logging.INFO
        files = some([os.path.basename(str(record.get("file_name"))) for record in empty])
        text = "data set %s: %d of %d images (%.1f%%) have no object to learn: %s"
        logger.log(level, text, shown(name), len(empty), len(records), 100 * share, files)
