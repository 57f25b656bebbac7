"""Choose the evaluator of a data set by `evaluator_type` in its metadata.

To add a type, write a function and register it in `EVALUATORS`.
"""

import os
from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from solo_d2.config.models import is_panoptic
from solo_d2.data.catalog import check_datasets, require_model_classes
from solo_d2.evaluation.average_precision import IOU_TYPES
from solo_d2.evaluation.cityscapes import CityscapesEvaluator
from solo_d2.evaluation.coco_results import FastCOCOEvaluator
from solo_d2.evaluation.contours import ContourEvaluator
from solo_d2.evaluation.lvis_results import FastLVISEvaluator
from solo_d2.evaluation.panoptic_quality import PanopticQualityEvaluator
from solo_d2.evaluation.semantic import WholeSemSegEvaluator
from solo_d2.utils.errors import ConfigError, DatasetError


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build the evaluator of a data set.

    Args:
        cfg: config; uses OUTPUT_DIR, TEST.AP_BACKEND, TEST.AP_MAX_PREDICTIONS,
            TEST.KEEP_PANOPTIC_PREDICTIONS, MODEL.META_ARCHITECTURE, MODEL.CLASSES and
            MODEL.SOLO.MASK_TARGET.
        dataset_name: name in Detectron2's catalogs.
        output_folder: folder of the predictions; OUTPUT_DIR/inference/DATASET_NAME if None.

    Returns:
        An evaluator of mask AP, and of box AP except for Cityscapes. For a panoptic model on a
        panoptic data set, also of mIoU and panoptic quality. For contours, an evaluator of contours
        and box AP.

    Raises:
        ConfigError: the type is not supported, its package is missing, or the classes differ from
            the model's (MODEL.CLASSES).
        DatasetError: the data set is not registered, or its annotation file is missing.
    """
    kind = evaluator_type(dataset_name)
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    require_model_classes(cfg, [dataset_name])
    evaluator = EVALUATORS[kind](cfg, dataset_name, output_folder)
    if cfg.MODEL.SOLO.MASK_TARGET == "contour":
        # Built after the other evaluator, which checks that the data set exists.
        return DatasetEvaluators([ContourEvaluator(dataset_name), evaluator])
    return evaluator


def evaluator_type(dataset_name: str) -> str:
    """Return a data set's key in `EVALUATORS`; see `build_evaluator` for the errors."""
    if dataset_name not in DatasetCatalog:
        raise DatasetError(f"Data set '{dataset_name}' is not registered")
    kind: str | None = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind in EVALUATORS:
        return kind
    found = "has no evaluator_type" if kind is None else f"has evaluator_type '{kind}'"
    raise ConfigError(
        f"Data set '{dataset_name}' {found} in its metadata; supported are "
        f"{', '.join(sorted(EVALUATORS))}. Set it by "
        f"MetadataCatalog.get('{dataset_name}').evaluator_type = 'coco', or leave the data set "
        "out of DATASETS.TEST"
    )


def _build_coco(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    metadata = MetadataCatalog.get(dataset_name)
    # Loading creates generated data sets, and removes a JSON that pycocotools cannot use from the
    # metadata. It is not needed if the category ids are known, as for COCO itself.
    key = "thing_dataset_id_to_contiguous_id"
    missing = False
    if metadata.get("made_on_first_use", False):
        key, missing = "thing_classes", not os.path.isfile(metadata.json_file)
    if missing or metadata.get(key) is None:
        DatasetCatalog.get(dataset_name)
    return FastCOCOEvaluator(
        *(dataset_name, output_folder),
        backend=cfg.TEST.AP_BACKEND,
        tasks=_tasks(cfg),
        max_predictions=(1, 10, cfg.TEST.AP_MAX_PREDICTIONS),
    )


def _build_lvis(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return FastLVISEvaluator(dataset_name, output_folder, tasks=_tasks(cfg))


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    """Return the IoU types of AP: mask AP is meaningless for contours."""
    return ("bbox",) if cfg.MODEL.SOLO.MASK_TARGET == "contour" else IOU_TYPES


def _build_cityscapes(_cfg: CfgNode, dataset_name: str, _output_folder: str) -> DatasetEvaluator:
    return CityscapesEvaluator(dataset_name)


def _build_panoptic(
    build_instances: "Builder", cfg: CfgNode, dataset_name: str, output_folder: str
) -> DatasetEvaluator:
    """Evaluate instances, and stuff and panoptic quality if the model is panoptic."""
    check_datasets([dataset_name])
    if not is_panoptic(cfg):
        return build_instances(cfg, dataset_name, output_folder)
    # Listing its files creates or converts the data set if needed.
    stuff = WholeSemSegEvaluator(dataset_name, output_dir=output_folder)
    panoptic = PanopticQualityEvaluator(
        dataset_name, output_folder, keep_predictions=cfg.TEST.KEEP_PANOPTIC_PREDICTIONS
    )
    instances = build_instances(cfg, dataset_name, output_folder)
    return DatasetEvaluators([instances, stuff, panoptic])


# Takes the config, the name of the data set and the output folder.
Builder = Callable[[CfgNode, str, str], DatasetEvaluator]

EVALUATORS: dict[str, Builder] = {
    "cityscapes_instance": _build_cityscapes,
    "cityscapes_panoptic_seg": partial(_build_panoptic, _build_cityscapes),
    "coco": _build_coco,
    "coco_panoptic_seg": partial(_build_panoptic, _build_coco),
    "lvis": _build_lvis,
}
