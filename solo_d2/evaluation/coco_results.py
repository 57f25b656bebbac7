"""Predictions in COCO's result format, and their AP.

Unlike in Detectron2, the masks of an image are encoded together on their device, and each process
evaluates some of the categories.
"""

import contextlib
import io
import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from solo_d2.data.coco_json import read_lists
from solo_d2.data.problems import refuse_errors
from solo_d2.data.unique_names import unique_class_names
from solo_d2.evaluation.average_precision import (
    COCO_MAX_PREDICTIONS,
    IOU_TYPES,
    Annotation,
    Curves,
    category_curves,
    group,
    index_coco,
    join_curves,
    load_backend,
    usable_annotations,
)
from solo_d2.ops.mask_crops import MaskCrops
from solo_d2.ops.rle import encode_masks
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.files import save_text


def instances_to_coco_json(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Convert the predictions of an image like Detectron2's function of the same name.

    Args:
        instances: instances with pred_boxes, scores, pred_classes and optionally pred_masks, on any
            device.
        image_id: id of the image.

    Returns:
        A dict per instance, in order; boxes are XYWH.
    """
    fields = {k: v for k, v in instances.get_fields().items() if k != "pred_masks"}
    without_masks = Instances(instances.image_size, **fields).to("cpu")
    results: list[dict[str, Any]] = coco_evaluation.instances_to_coco_json(without_masks, image_id)
    if instances.has("pred_masks"):
        masks = instances.pred_masks
        rles = encode_masks(masks if isinstance(masks, MaskCrops) else masks.bool())
        for result, rle in zip(results, rles, strict=True):
            # JSON has no bytes.
            result["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}
    return results


def read_ground_truth(dataset_name: str) -> COCO:
    """Read the annotations of a data set as training does; see `usable_annotations`.

    For a data set without JSON, the dataset dicts are converted to COCO format.
    """
    metadata = MetadataCatalog.get(dataset_name)
    json_file = metadata.get("json_file") or metadata.get("registered_paths", {}).get("json_file")
    if json_file is None:
        content = convert_to_coco_dict(dataset_name)
    else:
        path = PathManager.get_local_path(json_file)
        content = read_lists(path, refuse_errors(path), dataset_name)
    if "annotations" in content:
        content["annotations"] = usable_annotations(
            content["annotations"],
            {image["id"]: image for image in content["images"]},
            {category["id"] for category in content["categories"]},
        )
    return index_coco(content)


class FastCOCOEvaluator(COCOEvaluator):
    """Faster `COCOEvaluator` of boxes and masks with the same metrics."""

    # File of the predictions in output_dir.
    results_file = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None,
        *,
        backend: str = "auto",
        tasks: Sequence[str] = IOU_TYPES,
        max_predictions: Sequence[int] = (1, 10, COCO_MAX_PREDICTIONS),
    ):
        """Read the annotations.

        Args:
            dataset_name: see `read_ground_truth`.
            output_dir: folder of `results_file`; None not to write it.
            backend: see `load_backend`.
            tasks: subset of `IOU_TYPES`.
            max_predictions: maximum predictions per image and category for AR@1, AR@10 and all
                other metrics.
        """
        # Replaces Detectron2's constructor, which cannot read all files that training reads.
        self._logger = logging.getLogger(__name__)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._tasks, self._output_dir = tuple(tasks), output_dir
        self._coco_api = read_ground_truth(dataset_name)
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self._backend, self._evaluator = load_backend(backend)
        self.max_predictions = tuple(max_predictions)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add the predictions of some images; an output may be empty."""
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                results = instances_to_coco_json(output["instances"], image["image_id"])
                self._predictions.append({"image_id": image["image_id"], "instances": results})

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Compare the predictions of all processes with the ground truth; all must call it.

        Returns:
            The metrics of each task in percent in the main process, empty in the others; NaN
            without such objects or without any prediction.
        """
        results = [result for image in self._predictions for result in image["instances"]]
        self._use_category_ids(results)
        everything = [result for part in comm.gather(results) for result in part]
        if comm.is_main_process() and self._output_dir:
            save_text(Path(self._output_dir) / self.results_file, json.dumps(everything))
        metrics: OrderedDict[str, dict[str, float]] = OrderedDict()
        if not self._do_evaluation:
            self._logger.info("There are no annotations to evaluate with")
            return metrics
        self._logger.info("Evaluating with %s", self._backend)
        truth = group(self._coco_api.dataset["annotations"], "category_id")
        predicted = self._share(truth, self._counted(results))
        for task in self._tasks:
            curves = {
                category: category_curves(
                    self._evaluator,
                    truth[category],
                    predicted[category],
                    partial(self._image, category),
                    iou_type=task,
                    max_predictions=self.max_predictions,
                )
                for category in predicted
            }
            parts = comm.gather(curves)
            if comm.is_main_process():
                joined = {key: curve for part in parts for key, curve in part.items()}
                categories = sorted(self._coco_api.cats)
                found = join_curves(joined, categories, len(self.max_predictions))
                metrics[task] = self._metrics(task, found if everything else None)
        return metrics

    def _use_category_ids(self, results: Sequence[Annotation]) -> None:
        """Check classes and images of results, and replace classes by category ids, in place."""
        known = self._metadata.get("thing_dataset_id_to_contiguous_id")
        ids = sorted(self._coco_api.cats) if known is None else sorted(known, key=known.get)
        for result in results:
            if result["category_id"] >= len(ids):
                raise ConfigError(
                    f"The model predicts class {result['category_id']} (from 0), but the data set "
                    f"has {len(ids)} classes: MODEL.SOLO.NUM_CLASSES does not fit it"
                )
            if result["image_id"] not in self._coco_api.imgs:
                raise DatasetError(
                    f"There is a prediction for image {result['image_id']!r}, which is not in the "
                    "annotation file. Do the files of the data set belong together?"
                )
            result["category_id"] = ids[result["category_id"]]

    def _counted(self, results: Sequence[Annotation]) -> Sequence[Annotation]:
        """Select the results of this process to evaluate."""
        return results

    def _image(self, _category: Any, image_id: Any) -> dict[str, Any]:
        """Return an image in COCO's format for the evaluation of a category."""
        image = self._coco_api.imgs[image_id]
        return {key: image[key] for key in ("height", "width")}

    def _share(
        self, truth: Mapping[Any, Sequence[Annotation]], results: Iterable[Annotation]
    ) -> dict[Any, list[Annotation]]:
        """Exchange results between processes, so that each has all results of its categories.

        Categories without ground truth are skipped, since their AP is undefined. The others are
        distributed by decreasing number of objects to balance the work.
        """
        mine, size = group(results, "category_id"), comm.get_world_size()
        ordered = sorted(truth, key=lambda category: -len(truth[category]))
        received = [
            comm.gather({key: mine.get(key, []) for key in ordered[rank::size]}, dst=rank)
            for rank in range(size)
        ][comm.get_rank()]
        categories = ordered[comm.get_rank() :: size]
        return {key: [item for part in received for item in part[key]] for key in categories}

    def _metrics(self, task: str, curves: Curves | None) -> dict[str, float]:
        """Return the metrics in percent; NaN without curves."""
        summary = None
        if curves is not None:
            summary, table = coco_summary(curves, self.max_predictions)
            self._logger.info("Metrics of %s:\n%s", task, table)
        known = self._metadata.get("thing_classes") is not None
        names = unique_class_names(self._metadata) if known else None
        return self._derive_coco_results(summary, task, class_names=names)


def coco_summary(curves: Curves, max_predictions: Sequence[int]) -> tuple[COCOevalMaxDets, str]:
    """Compute COCO's twelve metrics from the curves of all categories.

    Returns:
        An evaluation with `stats` and, in `eval`, precision and recall; and the table that
        pycocotools prints.
    """
    summary = COCOevalMaxDets(iouType="segm")  # of masks and boxes alike
    summary.params.maxDets = list(max_predictions)
    summary.eval = {"precision": curves[0], "recall": curves[1]}
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        summary.summarize()
    return summary, table.getvalue().rstrip()
