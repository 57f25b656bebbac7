"""Check evaluation data before training starts.

Raise for errors that would stop the evaluation; warn of unreadable images. Only the headers of
image files are read.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from solo_d2.data.catalog import check_datasets
from solo_d2.data.coco_json import some
from solo_d2.data.ignored import without_objects
from solo_d2.data.label_pngs import require_size
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.workers import in_threads
from solo_d2.evaluation.build import EVALUATORS, build_evaluator
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.images import MAX_PIXELS, ImageError, read_size

logger = logging.getLogger("solo_d2")

# Builds the evaluator of a data set from its name and a folder; None for unknown types.
MakeEvaluator = Callable[[str, str], DatasetEvaluator | None]


def check_test_data(
    cfg: CfgNode, names: Iterable[str] | None = None, *, needs_metrics: bool = True
) -> None:
    """Check the data that an evaluation reads; see `check_evaluation`.

    Args:
        cfg: as of `build_evaluator`, with the numbers of classes.
        names: of the data sets; None: those of DATASETS.TEST.
        needs_metrics: see `check_evaluation`.
    """

    def make(name: str, folder: str) -> DatasetEvaluator | None:
        # A custom trainer may have its own evaluators.
        known = MetadataCatalog.get(name).get("evaluator_type") in EVALUATORS
        return build_evaluator(cfg, name, folder) if known else None

    names = cfg.DATASETS.TEST if names is None else names
    check_evaluation(names, make, cfg.INPUT.MAX_PIXELS, needs_metrics=needs_metrics)


def check_evaluation(
    names: Iterable[str],
    make_evaluator: MakeEvaluator,
    max_pixels: int = MAX_PIXELS,
    *,
    needs_metrics: bool = True,
) -> None:
    """Load data sets, look for their files and check what their evaluators compare with.

    All processes call it together: the main process reads, and all raise the same error.

    Args:
        names: of registered data sets.
        make_evaluator: see `MakeEvaluator`; what is written to the folder is removed.
        max_pixels: of the largest image that is read.
        needs_metrics: False if predictions are of use without annotations to compare with.

    Raises:
        ConfigError: an evaluator cannot be made.
        DatasetError: something is wrong that the evaluation would fail on.
    """
    error: Exception | None = None
    if comm.is_main_process():
        try:
            for name in names:
                _check_images(name, max_pixels)
                _check_truth(name, make_evaluator, needs_metrics)
        except (ConfigError, DatasetError) as found:
            error = found
    error = comm.all_gather(error)[0]
    if error is not None:
        raise error


def _check_images(name: str, max_pixels: int) -> None:
    """Raise for missing images, or if none is readable; warn of unreadable ones and no objects."""
    check_datasets([name])
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    file = metadata.get("panoptic_json") or metadata.get("json_file")
    described = f"Data set '{name}'" + (f" ({file})" if file else "")
    if not records:
        raise DatasetError(f"{described} has no images to evaluate on")
    if any("annotations" in x for x in records) and len(without_objects(records)) == len(records):
        logger.warning(f"{described} has no objects, so average precision on it is undefined (NaN)")
    without_id = sum("image_id" not in record for record in records)
    if without_id and metadata.get("evaluator_type") in EVALUATORS:
        raise DatasetError(
            f"{described}: {without_id} of {len(records)} images have no 'image_id', which the "
            "evaluation needs"
        )
    of_images = f"of the {len(records)} images of data set '{name}'"
    local = [record for record in records if "://" not in record["file_name"]]
    missing = [x["file_name"] for x in local if not os.path.exists(x["file_name"])]
    if missing:
        raise DatasetError(
            f"{len(missing)} {of_images} are missing: {some(missing)}. " + where_datasets_are(name)
        )

    def problem(record: dict[str, Any]) -> str | None:
        try:
            height, width = read_size(record["file_name"], max_pixels=max_pixels)
            expected = {"height": height, "width": width, **record}
            require_size(record["file_name"], (height, width), expected)
        except (ImageError, DatasetError) as error:
            return str(error)
        return None

    problems = [line for line in in_threads(problem, local) if line is not None]
    if problems and len(problems) == len(records):
        raise DatasetError(f"None {of_images} can be read, such as {problems[0]}")
    if problems:
        logger.warning(
            f"{len(problems)} {of_images} cannot be read. The evaluation counts them as images "
            "without predictions:" + "".join(f"\n  {line}" for line in problems)
        )


def _check_truth(name: str, make_evaluator: MakeEvaluator, needs_metrics: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="evaluation_check") as folder:
        evaluator = make_evaluator(name, folder)
    for part in getattr(evaluator, "_evaluators", [evaluator]):
        if getattr(part, "_do_evaluation", True) is False:
            # Detectron2 registers test sets without annotations too, and keeps the predictions for
            # a server. Your own data need them in a training.
            paths = MetadataCatalog.get(name).get("registered_paths")
            if needs_metrics and paths is not None:
                raise DatasetError(
                    f"{paths['json_file']} has no list 'annotations', so nothing can be evaluated "
                    "with it. Name another file, or none, to train; --eval-only keeps the "
                    "predictions of such files"
                )
            logger.warning(
                f"Data set '{name}' has no annotations: predictions are kept, without metrics"
            )
        if hasattr(part, "check_truth"):
            part.check_truth()
