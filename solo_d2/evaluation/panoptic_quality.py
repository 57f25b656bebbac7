"""Panoptic quality (PQ, arXiv:1801.00868), equal to panopticapi's, computed per image.

N segments of the ground truth and M predicted segments of an image, C categories: things, then
stuff.
"""

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from tabulate import tabulate

from solo_d2.data.coco_json import in_order, some
from solo_d2.data.label_pngs import require_size
from solo_d2.data.panoptic_conversion import stuff_name
from solo_d2.data.panoptic_json import (
    check_segments,
    locate_segments,
    read_panoptic_json,
    read_png_size,
    read_segment_ids,
)
from solo_d2.data.unique_names import unique_names
from solo_d2.data.whole_folder import only_writer, whole_folder
from solo_d2.data.workers import in_threads
from solo_d2.utils.errors import DatasetError

logger = logging.getLogger(__name__)

_METRICS = ("PQ", "SQ", "RQ")


class PanopticQualityEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of all classes, of things, of stuff and of each class."""

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, keep_predictions: bool = False
    ) -> None:
        """Read the panoptic json.

        Args:
            dataset_name: with panoptic_json and panoptic_root in its metadata.
            output_dir: for predictions that are kept.
            keep_predictions: whether to write them in COCO's format to output_dir/panoptic:
                predictions.json, and the PNGs in predictions/.

        Raises:
            DatasetError: the panoptic json cannot be used, or PNGs are missing.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._json_file, self._png_root = metadata.panoptic_json, metadata.panoptic_root
        self._truth = read_panoptic_json(self._json_file, dataset_name, self._png_root)
        self._categories = [*self._truth.categories.things, *self._truth.categories.stuff]
        self._index = {category["id"]: index for index, category in enumerate(self._categories)}
        self._folder = Path(output_dir) / "panoptic" if output_dir and keep_predictions else None
        self.reset()
        names = [annotation["file_name"] for annotation in self._truth.annotations.values()]
        missing = [name for name in names if not os.path.isfile(self._png(name))]
        if missing:
            raise DatasetError(
                f"{len(missing)} of the {len(names)} panoptic PNGs of {self._json_file} are "
                f"missing in {os.path.abspath(self._png_root)}: {some(missing)}"
            )

    def reset(self) -> None:
        """Forget all predictions."""
        self._counts: dict[Any, NDArray[np.float64]] = {}  # by image id
        self._kept: list[tuple[dict[str, Any], bytes]] = []  # annotations and PNGs

    def check_truth(self) -> None:
        """Check that PNGs and json belong together.

        Only the headers of PNGs that are older than their conversion, which has checked them, are
        read.

        Raises:
            DatasetError: a PNG cannot be used, or differs from the json in size or segments.
        """
        metadata = MetadataCatalog.get(self._dataset_name)
        converted = -math.inf
        if metadata.get("made_on_first_use"):
            converted = os.path.getmtime(metadata.json_file)
        else:
            self._require_same_images()

        def check(item: tuple[Any, dict[str, Any]]) -> None:
            file, image = self._png(item[1]["file_name"]), self._truth.images[item[0]]
            if os.path.getmtime(file) > converted:
                check_segments(file, image, item[1]["segments_info"])
            else:
                require_size(file, read_png_size(file), image)

        in_threads(check, self._truth.annotations.items())

    def _require_same_images(self) -> None:
        listed = {record["image_id"] for record in DatasetCatalog.get(self._dataset_name)}
        annotated = self._truth.annotations.keys()
        for ids, problem in (
            (listed - annotated, "has no annotation of images of the data set"),
            (annotated - listed, "has annotations of images that the data set does not list"),
        ):
            if ids:
                raise DatasetError(
                    f"{self._json_file} {problem}: image ids {some(in_order(ids))}. Do the files "
                    "of the data set belong together?"
                )

    def _png(self, name: str) -> str:
        return os.path.join(self._png_root, name)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare the predictions of some images with the ground truth.

        Args:
            inputs: with image_id and file_name.
            outputs: with panoptic_seg, unchanged; empty for an image without a segment.

        Raises:
            DatasetError: an image is not in the panoptic json or has another size there, its PNG
                cannot be used, or a predicted segment has no pixel.
        """
        for image, output in zip(inputs, outputs, strict=True):
            key = image["image_id"]
            if key not in self._truth.annotations:
                raise DatasetError(
                    f"{self._json_file} has no annotation of image {key!r} "
                    f"({image['file_name']}). Do the files of the data set belong together?"
                )
            info = self._truth.images[key]
            size = info["height"], info["width"]
            ids, segments = output.get("panoptic_seg", (torch.zeros(size, dtype=torch.int32), []))
            require_size(image["file_name"], ids.shape, info)
            self._compare(key, ids.cpu().numpy().astype(np.int32), segments)

    def _compare(self, key: Any, ids: NDArray[np.int32], segments: list[dict[str, Any]]) -> None:
        truth = self._truth.annotations[key]
        first_stuff = len(self._truth.categories.things)
        classes = [  # stuff label 0 means all things
            s["category_id"] if s["isthing"] else first_stuff + s["category_id"] - 1
            for s in segments
        ]
        png = self._png(truth["file_name"])
        truth_ids = read_segment_ids(png)
        require_size(png, truth_ids.shape, self._truth.images[key])
        self._counts[key] = count_segments(
            locate_segments(png, truth_ids, truth["segments_info"]),
            [self._index[s["category_id"]] for s in truth["segments_info"]],
            [bool(s["iscrowd"]) for s in truth["segments_info"]],
            locate_segments(f"The prediction of image {key!r}", ids, segments),
            classes,
            num_classes=len(self._categories),
        )
        if self._folder is not None:
            found = [
                {"id": s["id"], "category_id": self._categories[index]["id"]}
                for s, index in zip(segments, classes, strict=True)
            ]
            # The PNG's name is unique, the image's may not be.
            name = stuff_name(truth["file_name"])
            entry = {"image_id": key, "file_name": name, "segments_info": found}
            blue_first = ids.view(np.uint8).reshape(*ids.shape, 4)[..., 2::-1]
            content = cv2.imencode(".png", np.ascontiguousarray(blue_first))[1].tobytes()
            self._kept.append((entry, content))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Accumulate the counts of all images; all processes must call it.

        Returns:
            {"panoptic_seg": metrics} in percent on the main process: PQ, SQ and RQ; the same with
            "_th" for things and "_st" for stuff; "PQ-CLASS", "SQ-CLASS" and "RQ-CLASS". NaN where
            no class of a group, or not the class, is in the ground truth or predicted (a segment
            that is mostly void does not count).

        Raises:
            DatasetError: an image has no prediction.
        """
        gathered, kept = comm.gather(self._counts), comm.gather(self._kept)
        if not comm.is_main_process():
            return None
        counts = {key: value for part in gathered for key, value in part.items()}
        missing = [key for key in self._truth.annotations if key not in counts]
        if missing:
            raise DatasetError(
                f"{len(missing)} of the {len(self._truth.annotations)} images of {self._json_file} "
                f"have no prediction: image ids {some(missing)}"
            )
        if self._folder is not None:
            predictions = {item[0]["image_id"]: item for part in kept for item in part}
            self._write(self._folder, predictions)
        nothing = np.zeros((len(self._categories), 4))
        metrics = self._metrics(sum((counts[key] for key in self._truth.annotations), nothing))
        logger.info("Panoptic quality:\n%s", format_metrics(metrics))
        return OrderedDict(panoptic_seg=metrics)

    def _write(self, folder: Path, predictions: dict[Any, tuple[dict[str, Any], bytes]]) -> None:
        """Write predictions in COCO's panoptic format, in the order of the json."""
        with only_writer(folder), whole_folder(folder) as work:
            for key in self._truth.annotations:
                entry, png = predictions[key]
                file = work / "predictions" / entry["file_name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png)
            entries = [predictions[key][0] for key in self._truth.annotations]
            (work / "predictions.json").write_text(json.dumps({"annotations": entries}))

    def _metrics(self, counts: NDArray[np.float64]) -> dict[str, float]:
        """Compute metrics in percent from the counts of all images."""
        iou, tp, fp, fn = counts.T
        with np.errstate(invalid="ignore"):  # NaN for absent classes
            total = tp + fp / 2 + fn / 2
            rq = tp / total
            sq = np.where(total > 0, iou / np.maximum(tp, 1), math.nan)
            rows = 100 * np.stack([iou / total, sq, rq])
        num_things = len(self._truth.categories.things)
        metrics: dict[str, float] = {}
        for suffix, group in (
            ("", slice(None)),
            ("_th", slice(num_things)),
            ("_st", slice(num_things, None)),
        ):
            present = rows[:, group][:, total[group] > 0]
            values = present.mean(axis=1) if present.size else [math.nan] * len(_METRICS)
            metrics |= {k + suffix: float(v) for k, v in zip(_METRICS, values, strict=True)}
        names = unique_names([c["name"] for c in self._categories], list(self._index))
        for name, values in zip(names, rows.T, strict=True):
            metrics |= {f"{k}-{name}": float(v) for k, v in zip(_METRICS, values, strict=True)}
        return metrics


def count_segments(
    truth: NDArray[np.intp],
    truth_classes: Sequence[int],
    crowd: Sequence[bool],
    predicted: NDArray[np.intp],
    predicted_classes: Sequence[int],
    *,
    num_classes: int,
) -> NDArray[np.float64]:
    """Match the segments of an image and count matches.

    A predicted segment matches one of its class if their IoU, without void, is over 0.5. One that
    is mostly void or crowd of its class does not count.

    Args:
        truth: (H, W) segment of each pixel, 0 to N - 1; -1 for void.
        truth_classes: N class indices.
        crowd: N flags.
        predicted: (H, W), likewise of the prediction.
        predicted_classes: M class indices.
        num_classes: C.

    Returns:
        (C, 4) sum of IoUs of matches, their number, unmatched predictions, unmatched truth.
    """
    classes, predicted_classes = (np.array(x, np.int64) for x in (truth_classes, predicted_classes))
    is_crowd = np.array(crowd, bool)
    rows, columns = len(classes) + 1, len(predicted_classes) + 1
    pairs = (truth + 1) * columns + predicted + 1
    shared = np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)
    areas, predicted_areas = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    void, shared = shared[0, 1:], shared[1:, 1:]
    iou = shared / (areas[:, None] + predicted_areas - shared - void)
    same = classes[:, None] == predicted_classes
    match = (iou > 0.5) & same & ~is_crowd[:, None]
    ignored = void + np.where(same & is_crowd[:, None], shared, 0).sum(axis=0)
    wrong = ~match.any(axis=0) & (ignored / predicted_areas <= 0.5)
    found = classes[match.nonzero()[0]]
    missed = classes[~match.any(axis=1) & ~is_crowd]
    numbers = [
        np.bincount(x, minlength=num_classes) for x in (found, predicted_classes[wrong], missed)
    ]
    return np.stack([np.bincount(found, iou[match], num_classes), *numbers], axis=1)


def format_metrics(metrics: dict[str, float]) -> str:
    """Format the metrics of groups and of the classes that are present."""
    titles = {"": "all", "_th": "things", "_st": "stuff"}
    names = [key.partition("-")[2] for key in metrics if key.startswith("PQ-")]
    titles |= {f"-{name}": name for name in names if not math.isnan(metrics[f"PQ-{name}"])}
    rows = [[title, *(metrics[k + suffix] for k in _METRICS)] for suffix, title in titles.items()]
    return str(tabulate(rows, ["", *_METRICS], tablefmt="pipe", floatfmt=".1f"))
