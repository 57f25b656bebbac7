"""Check the data of an evaluation before the training that precedes it.

Faults that the evaluation would fail on are refused; unreadable images are listed in a warning. Of
image files only the headers are read.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from solo_d2.data.catalog import check_datasets
from solo_d2.data.coco_json import some
from solo_d2.data.locations import where_datasets_are
from solo_d2.data.workers import num_workers
from solo_d2.evaluation.build import EVALUATORS, build_evaluator
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.images import MAX_PIXELS, ImageError, read_size

logger = logging.getLogger("solo_d2")

# Makes the evaluator of a data set, given its name and a folder; None: another program's.
MakeEvaluator = Callable[[str, str], DatasetEvaluator | None]


def check_test_data(
    cfg: CfgNode, names: Iterable[str] | None = None, *, needs_metrics: bool = True
) -> None:
    """Check all that the evaluation of DATASETS.TEST reads; see `check_evaluation`.

    Args:
        cfg: as of `build_evaluator`, with the numbers of classes.
        names: of the data sets; None: those of DATASETS.TEST.
        needs_metrics: see `check_evaluation`.

    Raises:
        ConfigError: an evaluator cannot be made.
        DatasetError: something is wrong that the evaluation would fail on.
    """

    def make(name: str, folder: str) -> DatasetEvaluator | None:
        # A trainer of one's own may have its own evaluators.
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
                _check(name, make_evaluator, max_pixels, needs_metrics)
        except (ConfigError, DatasetError) as found:
            error = found
    error = comm.all_gather(error)[0]
    if error is not None:
        raise error


def _check(name: str, make_evaluator: MakeEvaluator, max_pixels: int, needs_metrics: bool) -> None:
    check_datasets([name])
    records = DatasetCatalog.get(name)
    files = [record["file_name"] for record in records]
    missing = [file for file in files if "://" not in file and not os.path.exists(file)]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {len(records)} images of data set '{name}' are missing: "
            f"{some(missing)}. " + where_datasets_are(name)
        )
    _warn_of_unreadable(name, records, max_pixels)
    with tempfile.TemporaryDirectory(prefix="evaluation_check") as folder:
        evaluator = make_evaluator(name, folder)
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    for part in parts:
        if getattr(part, "_do_evaluation", True) is False:
            _report_no_annotations(name, needs_metrics)
        check_truth = getattr(part, "check_truth", None)
        if check_truth is not None:
            check_truth()


def _report_no_annotations(name: str, needs_metrics: bool) -> None:
    """Refuse one's own data without annotations in a training; those of test sets are not public.

    Detectron2 registers such test sets too, and keeps the predictions for a server.
    """
    paths = MetadataCatalog.get(name).get("registered_paths")
    if needs_metrics and paths is not None:
        raise DatasetError(
            f"{paths['json_file']} has no list 'annotations', so nothing can be evaluated with it. "
            "Name another file, or none, to train; --eval-only keeps the predictions of such files"
        )
    logger.warning(f"Data set '{name}' has no annotations: predictions are kept, without metrics")


def _warn_of_unreadable(name: str, records: list[dict[str, Any]], max_pixels: int) -> None:
    def problem(record: dict[str, Any]) -> str | None:
        file = record["file_name"]
        if "://" in file:
            return None
        try:
            height, width = read_size(file, max_pixels=max_pixels)
        except ImageError as error:
            return str(error)
        expected = record.get("height", height), record.get("width", width)
        if (height, width) == expected:
            return None
        return f"{file} has {height} x {width} pixels, the data set says {expected[0]} x " + str(
            expected[1]
        )

    with ThreadPoolExecutor(num_workers()) as pool:
        problems = [line for line in pool.map(problem, records) if line is not None]
    if problems:
        logger.warning(
            f"{len(problems)} of the {len(records)} images of data set '{name}' cannot be read. "
            "The evaluation counts them as images without predictions:"
            + "".join(f"\n  {line}" for line in problems)
        )
