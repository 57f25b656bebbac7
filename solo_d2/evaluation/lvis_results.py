"""LVIS's average precision (arXiv:1908.03195), by COCO's evaluators.

The package `lvis` fails with today's NumPy. What LVIS has beyond COCO's rules can be said in COCO's
terms, with the same figures:

- An image has at most 300 predictions, of all categories together.
- Of an image it is known which categories are in it (annotated) and which are not
  (`neg_category_ids`). Predictions of another category do not count: they are left out.
- Of a category in `not_exhaustive_category_ids` not every object of the image is annotated.
  Predictions of it that match no object do not count. This is what COCO's crowd regions do; so the
  image gets one as large as itself, of that category.
- AP of rare, common and frequent categories: the mean over those of one `frequency`.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from solo_d2.evaluation.average_precision import (
    Annotation,
    Curves,
    coco_parameters,
    predicted_annotations,
)
from solo_d2.evaluation.coco_results import FastCOCOEvaluator, as_loaded

# Predictions of an image that count.
MOST_PREDICTIONS = 300
# Figures of the categories that are in few, some and many images of the training set.
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}


class FastLVISEvaluator(FastCOCOEvaluator):
    """`LVISEvaluator` of Detectron2 with the same figures, and without the package `lvis`."""

    results_file = "lvis_instances_results.json"
    max_predictions = (MOST_PREDICTIONS,)

    def __init__(self, dataset_name: str, output_dir: str | None, *, backend: str = "auto"):
        """Read the annotations; see `FastCOCOEvaluator`."""
        super().__init__(dataset_name, output_dir, backend=backend)
        self._do_evaluation = bool(self._coco_api.anns)  # files of test sets have an empty list
        dataset = self._coco_api.dataset
        dataset["annotations"] = as_loaded(dataset.get("annotations", ()), self._images)
        # By place of the image.
        self._not_exhaustive: dict[int, set[int]] = {}
        self._known: dict[int, set[int]] = defaultdict(set)
        for image in self._coco_api.dataset["images"]:
            place = self._images[image["id"]]
            self._not_exhaustive[place] = set(image.get("not_exhaustive_category_ids", ()))
            self._known[place].update(image.get("neg_category_ids", ()))
        for item in super()._truth() if self._do_evaluation else ():
            self._known[item["image_id"]].add(item["category_id"])

    def check_truth(self) -> None:
        """Nothing: `as_loaded` has checked all annotations."""

    def _truth(self) -> list[Annotation]:
        """Objects, and regions in which predictions without an object do not count."""
        regions = [
            whole_image(place, category, *self._images.sizes[place])
            for place, categories in self._not_exhaustive.items()
            for category in sorted(categories)
        ]
        return super()._truth() + regions

    def _predicted(self, results: Sequence[Annotation], task: str) -> list[Annotation]:
        """The best predictions of each image, of categories of which it is known what is there."""
        predicted = best_of_images(
            predicted_annotations(results, task, self._images), MOST_PREDICTIONS
        )
        return [item for item in predicted if self._counts(item)]

    def _counts(self, item: Annotation) -> bool:
        place, category = item["image_id"], item["category_id"]
        if category not in self._known[place]:
            return False
        # What is empty overlaps no region, but is free of charge all the same.
        return item["area"] > 0 or category not in self._not_exhaustive[place]

    def _figures(self, task: str, curves: Curves | None) -> dict[str, float]:
        """Figures in percent, see `lvis_figures`."""
        categories = [self._coco_api.cats[key] for key in sorted(self._coco_api.cats)]
        groups = [category.get("frequency") for category in categories]
        if curves is None:
            self._logger.warning("There are no predictions")
            precision = np.full((0, 0, len(groups), len(coco_parameters().areaRng), 1), -1.0)
        else:
            precision = curves[0]
        figures = lvis_figures(precision, groups)
        self._logger.info("Figures of %s:\n%s", task, create_small_table(figures))
        return figures


def whole_image(place: int, category: Any, height: int, width: int) -> Annotation:
    """A crowd region of a category that covers an image, and boxes that reach beyond it."""
    return {
        "image_id": place,
        "category_id": category,
        "iscrowd": 1,
        "area": height * width,
        "bbox": [-width, -height, 3 * width, 3 * height],
        "segmentation": {"size": [height, width], "counts": [0, height * width]},
    }


def best_of_images(predicted: Sequence[Annotation], limit: int) -> list[Annotation]:
    """The predictions of each image with the highest scores; of equal ones the first.

    Args:
        predicted: of any images.
        limit: of each image.

    Returns:
        Images in the order in which they come first. Those with more predictions than the limit
        have them by falling score, as LVIS has it; it decides between equal scores of a category.
    """
    of_image = defaultdict(list)
    for item in predicted:
        of_image[item["image_id"]].append(item)
    best = []
    for items in of_image.values():
        if len(items) > limit:
            items = sorted(items, key=lambda item: item["score"], reverse=True)[:limit]
        best += items
    return best


def lvis_figures(
    precision: NDArray[np.float64], frequencies: Sequence[str | None]
) -> dict[str, float]:
    """The figures of LVIS.

    Args:
        precision: (T, R, K, A, 1), -1 where absent.
        frequencies: of each category: "r" (in less than 10 images of the training set), "c" (less
            than 100), "f", or None where the file does not tell.

    Returns:
        AP, AP50, AP75; APs, APm, APl by area; APr, APc, APf by frequency; in percent, NaN where
        there is no object.
    """
    parameters = coco_parameters()
    first = dict(zip(parameters.areaRngLbl, precision[..., 0].transpose(3, 0, 1, 2), strict=True))
    every = first["all"]  # (T, R, K)
    figures = {"AP": every}
    for name, thresh in (("AP50", 0.5), ("AP75", 0.75)):
        figures[name] = every[np.isclose(parameters.iouThrs[: len(every)], thresh)]
    figures |= {"APs": first["small"], "APm": first["medium"], "APl": first["large"]}
    for name, frequency in FREQUENCIES.items():
        figures[name] = every[:, :, [group == frequency for group in frequencies]]
    return {name: _percent(values) for name, values in figures.items()}


def _percent(values: NDArray[np.float64]) -> float:
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else math.nan
