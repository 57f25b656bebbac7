"""LVIS's figures by its rules (arXiv:1908.03195, section 4), in loops."""

import numpy as np
from pycocotools import mask as coco_mask

from tests.evaluation.made_up import to_rle

IOU_THRESHS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101)
AREAS = {
    "AP": (0, 1e10),
    "APs": (0, 32**2),
    "APm": (32**2, 96**2),
    "APl": (96**2, 1e10),
}


def lvis_figures(truth, results, task):
    """In percent; None where there is no object."""
    images = {image["id"]: image for image in truth["images"]}
    results = best_300(results, sorted(images))
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    aps = {}
    for category in categories:
        for name, area in AREAS.items():
            for iou in IOU_THRESHS:
                aps[category["id"], name, iou] = average_precision(
                    [a for a in truth["annotations"] if a["category_id"] == category["id"]],
                    [r for r in results if r["category_id"] == category["id"]],
                    images,
                    (category["id"], area, iou, task),
                )

    def mean(name="AP", ious=IOU_THRESHS, frequency="rcf"):
        values = [
            aps[category["id"], name, iou]
            for category in categories
            for iou in ious
            if category["frequency"] in frequency
        ]
        values = [value for value in values if value is not None]
        return 100 * float(np.mean(values)) if values else None

    return {
        **{name: mean(name) for name in AREAS},
        **{"AP50": mean(ious=IOU_THRESHS[:1]), "AP75": mean(ious=IOU_THRESHS[5:6])},
        **{f"AP{group}": mean(frequency=group) for group in "rcf"},
    }


def best_300(results, image_ids):
    """The best of each image, image by image."""
    best = []
    for image_id in image_ids:
        mine = [result for result in results if result["image_id"] == image_id]
        best += sorted(mine, key=lambda result: -result["score"])[:300]
    return best


def average_precision(objects, results, images, setting):
    """Mean precision at 101 recalls; None without an object in the area range."""
    category, area, iou, task = setting
    outcomes, num_objects = [], 0
    for image_id in sorted(images):
        image = images[image_id]
        mine = [o for o in objects if o["image_id"] == image_id]
        num_objects += sum(area[0] <= o["area"] <= area[1] for o in mine)
        if not mine and category not in image["neg_category_ids"]:
            continue  # it is not known whether the image has it
        found = [r for r in results if r["image_id"] == image_id]
        free = category in image["not_exhaustive_category_ids"]
        outcomes += match(mine, found, image, (area, iou, task, free))
    if num_objects == 0:
        return None
    outcomes.sort(key=lambda outcome: -outcome[0])
    right = np.cumsum([matched for _, matched in outcomes])
    recall = right / num_objects
    precision = right / np.arange(1, len(outcomes) + 1)
    values = [max(precision[recall >= level], default=0) for level in RECALLS]
    return float(np.mean(values))


def match(objects, results, image, setting):
    """(score, whether it is right) of the results that count."""
    area, iou, task, free = setting
    size = image["height"], image["width"]
    taken = set()
    outcomes = []
    for result in sorted(results, key=lambda result: -result["score"]):
        overlaps = {
            number: overlap(result, item, task, size)
            for number, item in enumerate(objects)
            if number not in taken
        }
        enough = {number: value for number, value in overlaps.items() if value >= iou}
        inside = {n: v for n, v in enough.items() if area[0] <= objects[n]["area"] <= area[1]}
        candidates = inside or enough
        if candidates:
            highest = max(candidates.values())
            number = max(n for n, value in candidates.items() if value == highest)
            taken.add(number)
            if number in inside:
                outcomes.append((result["score"], True))
            continue
        extent = result_area(result, task)
        if area[0] <= extent <= area[1] and not free:
            outcomes.append((result["score"], False))
    return outcomes


def overlap(result, item, task, size):
    if task == "bbox":
        return coco_mask.iou([result["bbox"]], [item["bbox"]], [0])[0, 0]
    truth = to_rle(item["segmentation"], size)
    return coco_mask.iou([result["segmentation"]], [truth], [0])[0, 0]


def result_area(result, task):
    if task == "bbox":
        return result["bbox"][2] * result["bbox"][3]
    return float(coco_mask.area(result["segmentation"]))
