"""The classes of a model, as the categories of a COCO json: what MODEL.CLASSES holds.

A category is {"id": category id, "isthing": 0 or 1, "name": class name}. Things come first, in the
order of their class indices, then stuff in the order of its labels, which start at 1.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from solo_d2.data.coco_json import is_category, read_sorted_categories, some
from solo_d2.data.panoptic_format import fill_metadata
from solo_d2.utils.errors import ConfigError, shown

logger = logging.getLogger(__name__)

Category = dict[str, Any]


def is_category_list(value: Any) -> bool:
    """Return whether a value is a valid list of classes; empty means unknown."""
    return isinstance(value, (list, tuple)) and all(
        is_category(category) and category.get("isthing") in (0, 1) for category in value
    )


def make_categories(
    names: Sequence[str], ids: Sequence[Any], *, isthing: bool = True
) -> list[Category]:
    """Return categories of class names and as many category ids."""
    return [
        {"id": key if isinstance(key, str) else int(key), "isthing": int(isthing), "name": name}
        for key, name in zip(ids, map(str, names), strict=True)
    ]


def placeholder_names(count: int) -> list[str]:
    """Return names for unnamed classes."""
    return [f"class {index}" for index in range(count)]


def things(categories: Sequence[Category]) -> list[Category]:
    """Return the thing categories, by class index."""
    return [category for category in categories if category["isthing"]]


def stuff(categories: Sequence[Category]) -> list[Category]:
    """Return the stuff categories, from label 1 on."""
    return [category for category in categories if not category["isthing"]]


def model_categories(cfg: CfgNode) -> list[Category]:
    """Return MODEL.CLASSES, empty if unknown; raise ConfigError if it does not fit the model."""
    found: list[Category] = cfg.MODEL.CLASSES
    if not is_category_list(found):
        raise ConfigError(
            f"MODEL.CLASSES is {shown(found)}, but must be a list of categories, such as "
            "[{'id': 1, 'isthing': 1, 'name': 'cat'}]"
        )
    number = cfg.MODEL.SOLO.NUM_CLASSES
    if found and number not in (0, len(things(found))):
        raise ConfigError(
            f"MODEL.CLASSES has {len(things(found))} things, but MODEL.SOLO.NUM_CLASSES is {number}"
        )
    return list(found)


def dataset_categories(name: str) -> list[Category]:
    """Return the classes of a registered data set, with stuff if it has stuff maps.

    The data set is not loaded. The list is empty if the metadata has neither classes nor a json.
    Raises DatasetError if the json cannot be read.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("panoptic_json") is not None and metadata.get("thing_classes") is None:
        fill_metadata(name)
    names, json_file = metadata.get("thing_classes"), metadata.get("json_file")
    if names is None:
        if json_file is None:
            return []
        found = read_sorted_categories(json_file)
        return make_categories([x["name"] for x in found], [x["id"] for x in found])
    return make_categories(names, _thing_ids(metadata, names)) + _stuff_of(name)


def _thing_ids(metadata: Any, names: Sequence[str]) -> list[Any]:
    known = metadata.get("thing_dataset_id_to_contiguous_id")
    if known is not None:
        return _first_ids(known, range(len(names)))
    kind, json_file = str(metadata.get("evaluator_type")), metadata.get("json_file")
    if kind == "lvis":  # Detectron2 keeps no map
        return list(range(1, len(names) + 1))
    if kind.startswith("cityscapes"):
        ids = {category["name"]: category["id"] for category in CITYSCAPES_CATEGORIES}
        if all(name in ids for name in names):
            return [ids[name] for name in names]
    if json_file is None:
        return list(range(len(names)))  # as Detectron2's evaluator numbers them
    if os.path.isfile(json_file):
        found = read_sorted_categories(json_file)
        if len(found) == len(names):
            return [category["id"] for category in found]
    logger.warning(
        "The category ids of %s are not in %s: they are numbered from 0", metadata.name, json_file
    )
    return list(range(len(names)))


def _stuff_of(name: str) -> list[Category]:
    metadata = MetadataCatalog.get(name)
    if metadata.get("sem_seg_root") is None:
        return []
    fill_metadata(name)
    names = metadata.get("stuff_classes")
    labels = metadata.get("stuff_dataset_id_to_contiguous_id")
    if names is None or labels is None:
        return []
    return make_categories(names[1:], _first_ids(labels, range(1, len(names))), isthing=False)


def _first_ids(indices: Mapping[Any, int], wanted: Iterable[int]) -> list[Any]:
    """Return the first category id of each index."""
    ids: dict[int, Any] = {}
    for key, index in indices.items():
        ids.setdefault(index, key)
    return [ids.get(index, index) for index in wanted]


def difference(first: Sequence[Category], second: Sequence[Category], titles: Sequence[str]) -> str:
    """Describe how two lists of classes differ; "" for the same names in the same order.

    Category ids may differ: results are written with the data set's ids. `titles` names
    the two lists in the text.
    """
    keys = [[(x["name"], bool(x["isthing"])) for x in classes] for classes in (first, second)]
    if keys[0] == keys[1]:
        return ""
    parts = []
    for own, other, title in zip(keys, reversed(keys), titles, strict=True):
        only = (Counter(own) - Counter(other)).elements()
        names = [repr(name) if isthing else f"{name!r} (stuff)" for name, isthing in only]
        if names:
            parts.append(f"only {title} has {some(names)}")
    if parts:
        return "; ".join(parts)
    a, b = next((a, b) for a, b in zip(first, second, strict=True) if a["name"] != b["name"])
    return (
        f"the same classes in another order: {a['name']!r} (id {a['id']}) of {titles[0]} has the "
        f"place of {b['name']!r} (id {b['id']}) of {titles[1]}. Classes are in the order of their "
        "category ids: number them alike"
    )
