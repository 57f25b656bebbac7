"""Panoptic quality (PQ, arXiv:1801.00868), by panopticapi.

Differs from Detectron2's COCOPanopticEvaluator: a bounded number of threads instead of a process
for every core; NaN where panopticapi divides by zero, for a group of classes (things, stuff) that
is neither in the ground truth nor predicted; metrics of each class.
"""

import contextlib
import io
import itertools
import json
import logging
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from PIL import Image
from tabulate import tabulate

from solo_d2.data.coco_json import some
from solo_d2.data.panoptic_conversion import stuff_name
from solo_d2.data.panoptic_json import (
    PanopticJson,
    check_segments,
    read_panoptic_json,
    read_png_size,
    read_segment_ids,
    require_size,
    write_segment_ids,
)
from solo_d2.data.unique_names import unique_names
from solo_d2.data.whole_folder import only_writer, whole_folder
from solo_d2.data.workers import num_workers
from solo_d2.utils.errors import DatasetError

logger = logging.getLogger(__name__)

# Suffixes of the metrics of each group, as Detectron2's, and whether its classes are things.
_GROUPS: dict[str, bool | None] = {"": None, "_th": True, "_st": False}
_METRICS = ("pq", "sq", "rq")
# Below the evaluator's output folder, where predictions are kept.
KEPT = "panoptic"
PREDICTIONS = "predictions"


class PanopticQualityEvaluator(COCOPanopticEvaluator):
    """PQ, SQ and RQ of all classes, of things, of stuff and of each class."""

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, keep_predictions: bool = False
    ) -> None:
        """Make the evaluator.

        Args:
            dataset_name: with panoptic_json and panoptic_root in its metadata.
            output_dir: for predictions that are kept.
            keep_predictions: whether to write them in COCO's format to output_dir/panoptic:
                predictions.json, and the PNGs in predictions/.

        Raises:
            DatasetError: the panoptic json cannot be used, or PNGs are missing.
        """
        super().__init__(dataset_name, output_dir)
        self._dataset_name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        self._truth = read_panoptic_json(
            metadata.panoptic_json, dataset_name, metadata.panoptic_root
        )
        self._json_file = metadata.panoptic_json
        self._truth_folder = metadata.panoptic_root
        self._keep = keep_predictions
        _require_pngs(self._truth, self._json_file, self._truth_folder)

    def check_truth(self) -> None:
        """Check that PNGs and json belong together, as `evaluate` needs it.

        Of PNGs that are older than their conversion, which has checked them, only the header is
        read.

        Raises:
            DatasetError: a PNG cannot be used, or differs from the json in size or segments.
        """
        metadata = MetadataCatalog.get(self._dataset_name)
        made = bool(metadata.get("made_on_first_use"))
        converted = os.path.getmtime(metadata.json_file) if made else -math.inf
        if not made:
            records = DatasetCatalog.get(self._dataset_name)
            self._require_same_images([record["image_id"] for record in records])

        def check(item: tuple[Any, dict[str, Any]]) -> None:
            file = os.path.join(self._truth_folder, item[1]["file_name"])
            image = self._truth.images[item[0]]
            if os.path.getmtime(file) > converted:
                check_segments(file, image, item[1]["segments_info"])
            else:
                require_size(file, read_png_size(file), image)

        with ThreadPoolExecutor(num_workers()) as pool:
            for _ in pool.map(check, self._truth.annotations.items()):
                pass

    def _require_same_images(self, image_ids: list[Any]) -> None:
        annotated = self._truth.annotations
        without = [key for key in image_ids if key not in annotated]
        absent = sorted(annotated.keys() - set(image_ids), key=str)
        for ids, problem in (
            (without, "has no annotation of images of the data set"),
            (absent, "has annotations of images that the data set does not list"),
        ):
            if ids:
                raise DatasetError(
                    f"{self._json_file} {problem}: image ids {some(ids)}. Do the files of the data "
                    "set belong together?"
                )

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add the predictions of some images; `outputs` stays as it is.

        An empty output stands for an image without a segment.

        Raises:
            DatasetError: an image is not in the panoptic json, or has another size there.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._truth.annotations.get(image["image_id"])
            if truth is None:
                raise DatasetError(
                    f"{self._json_file} has no annotation of image {image['image_id']!r} "
                    f"({image['file_name']}). Do the files of the data set belong together?"
                )
            info = self._truth.images[image["image_id"]]
            if "panoptic_seg" in output:
                ids, segments = output["panoptic_seg"]
            else:
                ids, segments = torch.zeros(info["height"], info["width"], dtype=torch.int32), []
            if tuple(ids.shape) != (info["height"], info["width"]):
                raise DatasetError(
                    f"{image['file_name']} has {ids.shape[0]} x {ids.shape[1]} pixels (height x "
                    f"width), {self._json_file} says {info['height']} x {info['width']}"
                )
            copies = [{key: s[key] for key in ("id", "isthing", "category_id")} for s in segments]
            super().process([image], [{"panoptic_seg": (ids, copies)}])
            # Unlike Detectron2's, unique also where images in different folders have one name.
            self._predictions[-1]["file_name"] = stuff_name(truth["file_name"])

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Compare all predictions with the ground truth.

        Returns:
            {"panoptic_seg": metrics} in percent on the main process: PQ, SQ and RQ; the same with
            "_th" for things and "_st" for stuff; "PQ-CLASS", "SQ-CLASS" and "RQ-CLASS". NaN where
            no class of a group, or not the class, is in the ground truth or predicted (a segment
            that is mostly void does not count).

        Raises:
            DatasetError: an image has no prediction, or a PNG of the ground truth cannot be used.
        """
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = {item["image_id"]: item for item in itertools.chain(*gathered)}
        missing = [key for key in self._truth.annotations if key not in predictions]
        if missing:
            raise DatasetError(
                f"{len(missing)} of the {len(self._truth.annotations)} images of {self._json_file} "
                f"have no prediction: image ids {some(missing)}"
            )
        with self._prediction_folder() as folder:
            pairs = _write_predictions(folder, self._truth, predictions)
            stat = self._count(pairs, folder / PREDICTIONS)
        categories = {
            category["id"]: category
            for category in (*self._truth.categories.things, *self._truth.categories.stuff)
        }
        metrics = panoptic_metrics(stat, categories)
        logger.info("Panoptic quality:\n%s", format_metrics(metrics))
        return OrderedDict(panoptic_seg=metrics)

    @contextlib.contextmanager
    def _prediction_folder(self) -> Iterator[Path]:
        if self._keep and self._output_dir is not None:
            root = Path(self._output_dir) / KEPT
            with only_writer(root), whole_folder(root) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory(prefix="panoptic_eval") as temporary:
                yield Path(temporary)

    def _count(self, pairs: Sequence[tuple[Any, Any]], folder: Path) -> PQStat:
        """Count the matches of all images by panopticapi."""
        categories = {
            **self._truth.categories.thing_ids,
            **self._truth.categories.stuff_ids,
        }
        workers = num_workers()
        logger.info("Counting panoptic matches in %d images, %d threads", len(pairs), workers)

        def count(pair: tuple[Any, Any]) -> PQStat:
            try:
                pair = _with_areas(pair[0], self._truth_folder), pair[1]
                with _folder_of_rgb(pair[0]["file_name"], self._truth_folder) as truth_folder:
                    return pq_compute_single_core(
                        0, [pair], truth_folder, os.fspath(folder), categories
                    )
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(
                    f"{os.path.join(self._truth_folder, pair[0]['file_name'])} cannot be compared "
                    f"with the prediction of image {pair[0]['image_id']!r}: "
                    f"{type(error).__name__}: {error}"
                ) from error

        stat = PQStat()
        # It prints lines for each image, and a traceback before it raises.
        silence = io.StringIO()
        with (
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
            ThreadPoolExecutor(workers) as pool,
        ):
            for part in pool.map(count, pairs):
                stat += part
        return stat


def _with_areas(annotation: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return an image's annotation with the areas of its PNG; the json's may be wrong."""
    ids = read_segment_ids(os.path.join(folder, annotation["file_name"]))
    areas = dict(
        zip(*(array.tolist() for array in np.unique(ids, return_counts=True)), strict=True)
    )
    segments = annotation["segments_info"]
    return {**annotation, "segments_info": [{**s, "area": areas.get(s["id"], 0)} for s in segments]}


@contextlib.contextmanager
def _folder_of_rgb(name: str, folder: str) -> Iterator[str]:
    """Yield the folder of a PNG, or of a copy in RGB if it has a palette."""
    file = os.path.join(folder, name)
    with Image.open(file) as image:
        palette = image.mode == "P"
    if not palette:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="panoptic_truth") as temporary:
        (Path(temporary) / name).parent.mkdir(parents=True, exist_ok=True)
        write_segment_ids(Path(temporary) / name, read_segment_ids(file))
        yield temporary


def _require_pngs(truth: PanopticJson, json_file: str, folder: str) -> None:
    names = [annotation["file_name"] for annotation in truth.annotations.values()]
    missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {len(names)} panoptic PNGs of {json_file} are missing in "
            f"{os.path.abspath(folder)}: {some(missing)}"
        )


def _write_predictions(
    folder: Path, truth: PanopticJson, predictions: dict[Any, dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Write predictions in COCO's format; return pairs of annotations, truth and prediction."""
    pairs = []
    for key, annotation in truth.annotations.items():
        prediction = {k: v for k, v in predictions[key].items() if k != "png_string"}
        file = folder / PREDICTIONS / prediction["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(predictions[key]["png_string"])
        pairs.append((annotation, prediction))
    content = {"annotations": [prediction for _, prediction in pairs]}
    (folder / f"{PREDICTIONS}.json").write_text(json.dumps(content))
    return pairs


def panoptic_metrics(stat: PQStat, categories: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Compute the metrics in percent, see `PanopticQualityEvaluator.evaluate`.

    Args:
        stat: what panopticapi counted.
        categories: by id, with `name` and `isthing`.
    """
    present = {
        key: category
        for key, category in categories.items()
        if stat[key].tp + stat[key].fp + stat[key].fn > 0
    }
    metrics: dict[str, float] = {}
    for suffix, isthing in _GROUPS.items():
        # panopticapi divides by the number of present classes.
        empty = not any(isthing in (None, bool(c["isthing"])) for c in present.values())
        average = {} if empty else stat.pq_average(present, isthing)[0]
        for key in _METRICS:
            metrics[f"{key.upper()}{suffix}"] = 100 * float(average.get(key, math.nan))
    of_class = stat.pq_average(present, None)[1] if present else {}
    names = unique_names([c["name"] for c in categories.values()], list(categories))
    for key, name in zip(categories, names, strict=True):
        for metric in _METRICS:
            value = of_class[key][metric] if key in of_class else math.nan
            metrics[f"{metric.upper()}-{name}"] = 100 * float(value)
    return metrics


def format_metrics(metrics: dict[str, float]) -> str:
    """Format the metrics of groups and of the classes that are present."""
    titles = {"": "all", "_th": "things", "_st": "stuff"}
    columns = [key.upper() for key in _METRICS]
    rows = [[title, *(metrics[c + suffix] for c in columns)] for suffix, title in titles.items()]
    names = [key.partition("-")[2] for key in metrics if key.startswith("PQ-")]
    rows += [
        [name, *(metrics[f"{c}-{name}"] for c in columns)]
        for name in names
        if not math.isnan(metrics[f"PQ-{name}"])
    ]
    return str(tabulate(rows, ["", *columns], tablefmt="pipe", floatfmt=".1f"))
