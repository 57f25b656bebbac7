"""The evaluator of a data set, by `evaluator_type` in its metadata.

Another type is one function and one entry in `EVALUATORS`.
"""

import os
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    DatasetEvaluator,
)

from solo_d2.errors import ConfigError, DatasetError
from solo_d2.evaluation.coco_results import FastCOCOEvaluator, FastLVISEvaluator
from solo_d2.evaluation.packages import provide_cityscapes_scripts, provide_lvis

# Named rather than taken from the predictions, so that mask AP has its place among the results also
# where a model finds nothing; it is NaN then.
_TASKS = ("bbox", "segm")


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Choose and make the evaluator of a data set.

    Args:
        cfg: OUTPUT_DIR is read.
        dataset_name: in Detectron2's catalogs.
        output_folder: where predictions and converted annotations go;
            OUTPUT_DIR/inference/DATASET_NAME if None.

    Returns:
        An evaluator of mask AP, and of box AP where the data set's own tools have it.

    Raises:
        ConfigError: the data set's type is not supported, or its package is missing.
        DatasetError: the data set is unknown, or its annotation file is missing.
    """
    if dataset_name not in DatasetCatalog:
        raise DatasetError(f"Data set '{dataset_name}' is not registered")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        found = "has no evaluator_type" if kind is None else f"has evaluator_type '{kind}'"
        raise ConfigError(
            f"Data set '{dataset_name}' {found} in its metadata; supported are "
            f"{', '.join(sorted(EVALUATORS))}. Set it by "
            f"MetadataCatalog.get('{dataset_name}').evaluator_type = 'coco', or leave the data set "
            "out of DATASETS.TEST"
        )
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    return EVALUATORS[kind](dataset_name, output_folder)


def _build_coco(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    metadata = MetadataCatalog.get(dataset_name)
    json_file = metadata.get("json_file")
    # Loading makes a generated data set, and takes a json that pycocotools can't use out of the
    # metadata. Where the category ids are known already (COCO itself) there is no need for it.
    if metadata.get("made_on_first_use", False):
        if not os.path.isfile(json_file):
            DatasetCatalog.get(dataset_name)
    elif metadata.get("thing_dataset_id_to_contiguous_id") is None:
        DatasetCatalog.get(dataset_name)
    json_file = metadata.get("json_file")
    _require_annotations(dataset_name, json_file)
    evaluator = FastCOCOEvaluator(
        dataset_name, tasks=_TASKS, output_dir=output_folder, allow_cached_coco=False
    )
    if json_file is None:  # it has noted its converted json, which another run may remove
        del metadata.json_file
    return evaluator


def _build_lvis(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    provide_lvis()
    _require_annotations(dataset_name, MetadataCatalog.get(dataset_name).get("json_file"))
    return FastLVISEvaluator(dataset_name, tasks=_TASKS, output_dir=output_folder)


def _build_cityscapes(dataset_name: str, _output_folder: str) -> DatasetEvaluator:
    provide_cityscapes_scripts()
    return CityscapesInstanceEvaluator(dataset_name)


def _require_annotations(dataset_name: str, json_file: Any) -> None:
    if json_file is not None and "://" not in json_file and not os.path.isfile(json_file):
        raise DatasetError(
            f"The annotation file of data set '{dataset_name}' is missing: looked for "
            f"{os.path.abspath(json_file)}"
        )


EVALUATORS: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "cityscapes_instance": _build_cityscapes,
    "coco": _build_coco,
    "lvis": _build_lvis,
}
