"""Find annotations that training ignores: crowds, and images without objects.

COCO marks groups of objects by `iscrowd` 1, 1.2 % of the annotations of train2017. Some annotation
tools also set it for single objects that were drawn with a brush.
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

# Shares of crowds, in all annotations and in a class, above which they are probably a mistake.
CROWD_SHARE, CROWD_SHARE_OF_CLASS = 0.05, 0.5
# Share of images without objects above which they get a warning instead of an info.
EMPTY_SHARE = 0.1


def is_object(annotation: dict[str, Any]) -> bool:
    """Return whether training uses an annotation; it ignores crowds."""
    return annotation.get("iscrowd", 0) == 0


def find_ignored(
    name: str, records: Sequence[dict[str, Any]], class_names: Sequence[str] | None = None
) -> list[Problem]:
    """Return a problem if suspiciously many annotations of a data set are crowds.

    Args:
        name: name of the data set.
        records: Detectron2's dataset dicts.
        class_names: names of the K classes, if known.
    """
    annotations = [a for record in records for a in record.get("annotations") or ()]
    crowds = [annotation for annotation in annotations if not is_object(annotation)]
    total, of_class = (
        Counter(str(annotation.get("category_id")) for annotation in part)
        for part in (annotations, crowds)
    )
    share = len(crowds) / max(len(annotations), 1)
    classes = [key for key in of_class if of_class[key] > CROWD_SHARE_OF_CLASS * total[key]]
    if share <= CROWD_SHARE and not classes:
        return []
    known = {str(index): shown(text) for index, text in enumerate(class_names or ())}
    named = [known.get(key, key) for key in classes]
    also = f", among them most of class {some(named)}" if classes else ""
    examples = some([shown(annotation.get("id")) for annotation in crowds])
    reason = (
        f"{len(crowds)} of {len(annotations)} annotations ({share:.1%}) have 'iscrowd' 1 and are "
        f"not trained on{also}. Annotation tools write it for single objects drawn with a brush; "
        f"set it to 0 for all that are no groups: annotation {examples}"
    )
    return [Problem("many crowds", f"data set {shown(name)}", reason, NOTICE)]


def without_objects(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records without annotations other than crowds."""
    return [r for r in records if not any(map(is_object, r.get("annotations") or ()))]


def log_ignored(
    name: str, records: Sequence[dict[str, Any]], class_names: Sequence[str] | None = None
) -> None:
    """Log what training ignores in a loaded data set."""
    for problem in find_ignored(name, records, class_names):
        logger.warning("%s", problem)
    if not any("annotations" in record for record in records):
        return
    empty = without_objects(records)
    if empty:
        share = len(empty) / len(records)
        level = logging.WARNING if share > EMPTY_SHARE else logging.INFO
        files = some([os.path.basename(str(record.get("file_name"))) for record in empty])
        text = "data set %s: %d of %d images (%.1f%%) have no object to train on: %s"
        logger.log(level, text, shown(name), len(empty), len(records), 100 * share, files)
