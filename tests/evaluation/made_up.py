"""Ground truth and predictions that meet every rule of COCO's and LVIS's evaluation."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from solo_d2.data.coco_format import register_coco_format
from solo_d2.evaluation.average_precision import BACKENDS

CATEGORIES = (2, 3, 5, 7, 11, 13)
# The category that is never annotated, and the one that is never predicted.
UNSEEN, UNPREDICTED = 11, 13
# `TEST.AP_BACKEND`; Detectron2 can be built without its own.
_NOT_BUILT = importlib.util.find_spec("detectron2._C") is None
_NEEDS_C = pytest.mark.skipif(_NOT_BUILT, reason="needs Detectron2's compiled extension")
AP_BACKENDS = [
    pytest.param(name, marks=[_NEEDS_C] if name == "detectron2" else []) for name in BACKENDS
]
# The image with many objects and predictions of one category.
FULL = 4


def coco_truth(num_images=12, seed=0):
    """COCO's json: objects of all sizes as polygons and RLE, crowd regions, an empty image."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in rng.permutation(num_images).tolist():
        height, width = rng.integers(60, 260, 2).tolist()
        image = {"id": image_id + 1, "file_name": f"{image_id}.jpg"}
        images.append({**image, "height": height, "width": width})
        full = image_id == FULL - 1  # of one category
        for _ in range(8 if full else 0 if image_id == 0 else rng.integers(1, 9)):
            mask = ellipse(rng, height, width)
            rle = coco_mask.encode(mask)
            crowd = int(rng.random() < 0.15)
            category = int(rng.choice([c for c in CATEGORIES if c != UNSEEN]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id + 1,
                    "category_id": CATEGORIES[0] if full else category,
                    "iscrowd": crowd,
                    "area": float(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": segmentation(mask, rle, crowd, len(annotations)),
                }
            )
    categories = [{"id": key, "name": f"class {key}"} for key in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


def rectangle(key, box, image_id, category_id, **changes):
    """COCO's annotation of a rectangle, a box (XYXY)."""
    x0, y0, x1, y1 = box
    return {
        "id": key,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        **changes,
    }


def images_of(size, *ids, extension="jpg"):
    """COCO's entries of images."""
    named = {key: f"{key}.{extension}" for key in ids}
    height, width = size
    return [{"id": k, "file_name": f, "height": height, "width": width} for k, f in named.items()]


def register_json(folder, name, content):
    """Register a data set in COCO's format, with a file for each image; its name."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    for image in content["images"]:
        (folder / image["file_name"]).touch()
    register_coco_format(name, file, folder)
    return name


def masks_of(size, *boxes):
    """(N, H, W) bool tensor of rectangles (XYXY)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def rectangles(size, *boxes, scores=None, classes=None):
    """Predictions: rectangles (XYXY), of score 1 and class 0 unless said otherwise."""
    num = len(boxes)
    return Instances(
        size,
        pred_masks=masks_of(size, *boxes),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor([1.0] * num if scores is None else scores),
        pred_classes=torch.tensor([0] * num if classes is None else classes, dtype=torch.int64),
    )


def ellipse(rng, height, width):
    """(H, W) uint8, of any size, in Fortran order."""
    mask = np.zeros((height, width), np.uint8)
    center = int(rng.integers(width)), int(rng.integers(height))
    axes = tuple(int(side) for side in np.exp(rng.uniform(1, 5, 2)))
    cv2.ellipse(mask, center, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return np.asfortranarray(mask)


def segmentation(mask, rle, crowd, number):
    """The mask as a polygon, as compressed RLE or, of crowd regions, as uncompressed RLE."""
    if crowd:
        pixels = mask.ravel(order="F")
        stops = np.flatnonzero(np.diff(pixels)) + 1
        runs = np.diff([0, *stops.tolist(), len(pixels)]).tolist()
        return {"size": list(mask.shape), "counts": runs if pixels[0] == 0 else [0, *runs]}
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    outline = outlines[0].ravel().tolist()
    if number % 2 or len(outline) < 6:
        return {**rle, "counts": rle["counts"].decode()}
    return [outline]


def predictions(truth, seed=1, most=4):
    """COCO's results: copies of the objects, moved; wrong classes; equal scores; many in one image.

    Categories are ids of the file.
    """
    rng = np.random.default_rng(seed)
    images = {image["id"]: image for image in truth["images"]}
    results = []
    for annotation in truth["annotations"]:
        image = images[annotation["image_id"]]
        size = image["height"], image["width"]
        mask = coco_mask.decode(to_rle(annotation["segmentation"], size))
        for _ in range(20 if image["id"] == FULL else rng.integers(0, most)):
            category = annotation["category_id"]
            if rng.random() < 0.2 or category == UNPREDICTED:
                category = int(rng.choice([c for c in CATEGORIES if c != UNPREDICTED]))
            moved = np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1))
            rle = coco_mask.encode(np.asfortranarray(moved))
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "score": float(np.round(rng.random(), 1)),
                    "bbox": (coco_mask.toBbox(rle) + rng.uniform(0, 2, 4)).tolist(),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    return results


def to_rle(given, size):
    """Compressed RLE of any segmentation."""
    if isinstance(given, dict) and isinstance(given["counts"], str):
        return given
    rles = coco_mask.frPyObjects(given, *size)
    return coco_mask.merge(rles) if isinstance(rles, list) else rles


def lvis_truth(num_images=12, seed=0):
    """LVIS's json: no crowd regions; images of which not everything is known."""
    rng = np.random.default_rng(seed)
    truth = coco_truth(num_images, seed)
    kept = [a for a in truth["annotations"] if not a.pop("iscrowd")]
    truth["annotations"] = kept
    for image in truth["images"]:
        inside = {a["category_id"] for a in kept if a["image_id"] == image["id"]}
        outside = [c for c in CATEGORIES if c not in inside]
        image["neg_category_ids"] = [c for c in outside if rng.random() < 0.4]
        known = sorted(inside) + image["neg_category_ids"]
        image["not_exhaustive_category_ids"] = [c for c in known if rng.random() < 0.3]
    for category, frequency in zip(truth["categories"], "rcfrcf", strict=True):
        category["frequency"] = frequency
    return truth
