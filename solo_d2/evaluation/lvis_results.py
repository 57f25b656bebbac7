"""LVIS's average precision (arXiv:1908.03195), by faster-coco-eval.

The package `lvis` fails with current NumPy. LVIS limits the predictions of an image, of all
categories together. Those of a category of which it is unknown whether it is in the image (neither
annotated nor in `neg_category_ids`) do not count; faster-coco-eval 1.8 fails with an IndexError if
an image has nothing else.
"""

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO

from solo_d2.evaluation.average_precision import IOU_TYPES, Annotation, Curves, group
from solo_d2.evaluation.coco_results import FastCOCOEvaluator
from solo_d2.utils.errors import ConfigError

# Predictions of an image that count.
MOST_PREDICTIONS = 300
# Our names of faster-coco-eval's metrics; the last three are of rare, common and frequent classes.
METRICS = {
    **{"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75"},
    **{"APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"},
    **{"APr": "APr", "APc": "APc", "APf": "APf"},
}


class FastLVISEvaluator(FastCOCOEvaluator):
    """Detectron2's `LVISEvaluator` with the same metrics, without the package `lvis`."""

    results_file = "lvis_instances_results.json"

    def __init__(
        self, dataset_name: str, output_dir: str | None, *, tasks: Sequence[str] = IOU_TYPES
    ):
        """Read the annotations; see `FastCOCOEvaluator`.

        Raises:
            ConfigError: faster-coco-eval is not installed.
        """
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "Evaluating a data set in LVIS's format needs the package faster-coco-eval: "
                f"pip install faster-coco-eval ({error})"
            ) from error
        super().__init__(
            *(dataset_name, output_dir),
            backend="faster-coco-eval",
            tasks=tasks,
            max_predictions=(MOST_PREDICTIONS,),
        )
        self._evaluator = lvis_evaluation
        self._do_evaluation = bool(self._coco_api.anns)  # files of test sets have an empty list
        self._known = {  # the categories of which it is known whether they are in an image
            key: {*image.get("neg_category_ids", ())}
            | {annotation["category_id"] for annotation in self._coco_api.imgToAnns[key]}
            for key, image in self._coco_api.imgs.items()
        }

    def _counted(self, results: Sequence[Annotation]) -> list[Annotation]:
        return [
            item
            for item in best_of_images(results, MOST_PREDICTIONS)
            if item["category_id"] in self._known[item["image_id"]]
        ]

    def _image(self, category: Any, image_id: Any) -> dict[str, Any]:
        partly = self._coco_api.imgs[image_id].get("not_exhaustive_category_ids", ())
        # An evaluation has one category, with the id 1.
        return {
            **super()._image(category, image_id),
            "neg_category_ids": [1],
            "not_exhaustive_category_ids": [1] if category in partly else [],
        }

    def _metrics(self, task: str, curves: Curves | None) -> dict[str, float]:
        if curves is None:
            self._logger.warning("There are no predictions")
            return dict.fromkeys(METRICS, math.nan)
        summary = lvis_evaluation(None, None, task)
        summary.params.maxDets = list(self.max_predictions)
        summary.eval = {"precision": curves[0], "recall": curves[1]}
        categories = [self._coco_api.cats[key] for key in sorted(self._coco_api.cats)]
        summary.freq_groups = [
            [index for index, category in enumerate(categories) if category.get("frequency") == f]
            for f in summary.params.imgCountLbl
        ]
        summary.summarize()
        values = {name: summary.stats_as_dict[key] for name, key in METRICS.items()}
        metrics = {name: math.nan if v < 0 else 100 * v for name, v in values.items()}
        self._logger.info("Metrics of %s:\n%s", task, create_small_table(metrics))
        return metrics


def lvis_evaluation(truth: COCO | None, predictions: COCO | None, iou_type: str) -> Any:
    """Build faster-coco-eval's LVIS evaluation, which requires its own COCO class."""
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    own = [None if coco is None else FasterCOCO(coco.dataset) for coco in (truth, predictions)]
    return COCOeval_faster(
        *own, iou_type, lvis_style=True, rle_iou_max_workers=1, print_function=lambda *_: None
    )


def best_of_images(predicted: Sequence[Annotation], limit: int) -> list[Annotation]:
    """Return the `limit` best predictions of each image, by falling score; ties keep their order.

    Images are in order of first appearance.
    """
    best = []
    for items in group(predicted, "image_id").values():
        best += sorted(items, key=itemgetter("score"), reverse=True)[:limit]
    return best
