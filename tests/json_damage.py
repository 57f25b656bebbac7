"""Good annotation files, and hypothesis strategies that put junk into them."""

import copy
import json

import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 20, 30
SQUARE = [4.0, 3.0, 12.0, 3.0, 12.0, 9.0, 4.0, 9.0]


def rle_of(mask):
    """Compressed RLE of a mask, as json has it."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def encoded(top, left, bottom, right):
    """RLE of a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return rle_of(mask)


def coco_content():
    """COCO's instances: two images, `a.png` and `b.png`, and segmentations of every kind."""
    common = {"iscrowd": 0, "area": 48.0, "bbox": [4.0, 3.0, 8.0, 6.0]}
    counts = {"size": [HEIGHT, WIDTH], "counts": [100, 30, 470]}
    pieces = [
        {"image_id": 1, "category_id": 3, "segmentation": [[*SQUARE], [9, 9, 15, 9, 12, 15]]},
        {"image_id": 2, "category_id": 5, "segmentation": encoded(3, 4, 9, 12)},
        {"image_id": 2, "category_id": 3, "segmentation": counts},
        {"image_id": 1, "category_id": 5, "segmentation": encoded(2, 2, 12, 22), "iscrowd": 1},
    ]
    return {
        "info": {"description": "good"},
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": key, **common, **piece} for key, piece in enumerate(pieces, start=1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }


def save_boxes(file, size, boxes, names):
    """Write COCO's instances of images `1.png`, `2.png`, ... of one size.

    Args:
        file: the json.
        size: height and width.
        boxes: for each image (class from 1, x, y, width, height) of its objects.
        names: of the classes.
    """
    height, width = size
    images, annotations = [], []
    for key, objects in enumerate(boxes, start=1):
        images.append({"id": key, "file_name": f"{key}.png", "height": height, "width": width})
        for category, x, y, w, h in objects:
            place = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            place["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            ids = {"id": len(annotations) + 1, "image_id": key, "category_id": category}
            annotations.append({**ids, **place})
    categories = [{"id": key, "name": name} for key, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))


def lvis_content():
    """LVIS's instances of the same images, which it names by their addresses."""
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/{image.pop('file_name')}"
        image["not_exhaustive_category_ids"] = [2]
        image["neg_category_ids"] = [1]
    for annotation in content["annotations"]:
        annotation["category_id"] = {3: 1, 5: 2}[annotation["category_id"]]
        annotation.pop("iscrowd")
    content["categories"] = [
        {"id": key, "name": name, "frequency": "rf"[key - 1]}
        for key, name in enumerate(("cat", "dog"), start=1)
    ]
    return content


def places(node, path=()):
    """Every place of a json, the root excepted."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


NUMBERS = [-1, 0, 1, 2, 3, 5, 7, 29, 31, 0.5, -0.0, 1e9, -1e30, 1e308]
NUMBERS += [2**24, 2**63, 10**30, 10**400]
SPECIAL = [float("nan"), float("inf"), -float("inf"), None, True, False]
TEXTS = ["", "a", "1", "20", "a.png", "../a.png", "/a.png", ".", "a/", "P" * 9, "ĀĀ", "\0", "a\nb"]
TEXTS += ["\ud800", "猫.png", "x" * 3000]
# A place goes away, or gets what stands in another place; an entry of a list is there twice.
GONE, TWICE = "gone", "twice"


def junk():
    """Values that hardly belong anywhere."""
    scalars = st.sampled_from(NUMBERS + SPECIAL + TEXTS)
    return st.one_of(
        scalars,
        st.builds(list),
        st.builds(dict),
        st.lists(scalars, min_size=1, max_size=9),
        st.lists(st.lists(st.floats(width=32), min_size=5, max_size=9), min_size=1, max_size=2),
        st.lists(st.lists(scalars, max_size=8), min_size=1, max_size=3),
        st.dictionaries(st.sampled_from(["size", "counts", "id", "name"]), scalars, max_size=3),
    )


def changes_of(content, max_size=3):
    """Lists of changes to a content; each is a place with what happens to it."""
    there = list(places(content))
    actions = st.one_of(
        st.tuples(st.just("set"), junk()),
        st.tuples(st.just("copy"), st.sampled_from(there)),
        st.sampled_from([(GONE, None), (TWICE, None)]),
    )
    return st.lists(
        st.tuples(st.sampled_from(there), actions).map(lambda pair: (pair[0], *pair[1])),
        min_size=1,
        max_size=max_size,
    )


def put(*path, value):
    """A change that puts a value into a place."""
    return path, "set", value


def gone(*path):
    """A change that takes a place away."""
    return path, GONE, None


def twice(*path):
    """A change that has the entry of a list once more."""
    return path, TWICE, None


def changed(content, changes):
    """The content after changes; those whose place is gone by then do nothing."""
    content = copy.deepcopy(content)
    for path, action, value in changes:
        try:
            node = _at(content, path[:-1])
            if action == GONE:
                del node[path[-1]]
            elif action == TWICE:
                node.append(copy.deepcopy(node[path[-1]]))
            else:
                given = _at(content, value) if action == "copy" else value
                node[path[-1]] = copy.deepcopy(given)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return content


def _at(content, path):
    for key in path:
        content = content[key]
    return content


def damaged_text(content):
    """Texts of a json of which bytes were changed, lost or doubled."""
    text = json.dumps(content).encode()
    offsets = st.integers(0, len(text) - 1)
    return st.one_of(
        offsets.map(lambda end: text[:end]),
        st.tuples(offsets, offsets).map(lambda cut: text[: min(cut)] + text[max(cut) :]),
        st.tuples(offsets, st.binary(min_size=1, max_size=4)).map(
            lambda new: text[: new[0]] + new[1] + text[new[0] + len(new[1]) :]
        ),
        st.tuples(offsets, offsets).map(lambda cut: text[: max(cut)] + text[min(cut) :]),
    )


def assert_readable(text):
    """A message of one line, not endless, and fit for any terminal."""
    assert text.isprintable(), text
    assert len(text) < 2000
