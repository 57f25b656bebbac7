"""The training data of a config: its loader, and the reason if it holds nothing to learn."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.build import _train_loader_from_config
from detectron2.data.common import DatasetFromList
from torch.utils.data import DataLoader

from solo_d2.data.coco_records import BOX_ONLY, COVERS_NOTHING, OUTSIDE
from solo_d2.data.copy_paste import wrap_with_copy_paste
from solo_d2.data.entries import read_entries
from solo_d2.data.ignored import is_object, without_objects
from solo_d2.data.loader import SeededDataset, make_train_loader
from solo_d2.data.lvis_format import use_own_lvis_loaders
from solo_d2.data.mapper import SOLODatasetMapper
from solo_d2.data.other_models import without_other_inputs
from solo_d2.data.problems import Problem, count_reasons
from solo_d2.data.stuff_classes import is_panoptic
from solo_d2.engine.objects import ASSIGNED, OUTCOMES, Inspector, Objects, TargetRule
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.user_code import from_user_code

logger = logging.getLogger(__name__)

# A training follows the objects of this many images to find one that is assigned to a cell.
_MOST_IMAGES = 50
_NOTHING = "There is nothing to train on in the data sets of DATASETS.TRAIN"


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]) -> DataLoader[Any]:
    """Make the infinite training loader of a config.

    Args:
        cfg: the config; SEED fixes order and augmentation (-1 too is a seed here).
        mapper: makes a training sample of a data set dict; with copy-paste of two.

    Returns:
        Batches of SOLVER.IMS_PER_BATCH / processes samples, as lists. Set
        `loader.batch_sampler.start_batch` before the first batch is taken to go on from there.

    Raises:
        DatasetError: the data cannot be used, or holds nothing that the model could learn.
    """
    parts = _load_parts(cfg, mapper)
    require_objects(cfg, parts["dataset"])
    images = DatasetFromList(parts["dataset"], copy=False)
    return make_train_loader(
        images,
        wrap_with_copy_paste(cfg, mapper, images),
        sampler=parts["sampler"],
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=cfg.SEED,
        aspect_ratio_grouping=parts["aspect_ratio_grouping"],
        max_unreadable=cfg.DATALOADER.MAX_UNREADABLE_IMAGES,
    )


def _load_parts(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Data set and sampler by Detectron2."""
    use_own_lvis_loaders(cfg.DATASETS.TRAIN)
    try:
        return _train_loader_from_config(without_other_inputs(cfg), mapper=mapper)
    except AssertionError as error:  # how Detectron2 says that there is nothing
        if from_user_code(error):
            raise
        names = ", ".join(cfg.DATASETS.TRAIN) or "none"
        reason = nothing_to_train(cfg.DATASETS.TRAIN) if cfg.DATASETS.TRAIN else "none is named"
        raise DatasetError(
            f"The data sets of DATASETS.TRAIN ({names}) cannot be used: {reason}"
        ) from error


def require_assigned(cfg: CfgNode, model: Any, loader: Any) -> None:
    """Refuse data of which no object reaches a cell, see `require_assigned_objects`.

    Args:
        cfg: of the training.
        model: a SOLO model.
        loader: of the training; others than `make_train_loader` makes pass.
    """
    images = getattr(getattr(loader, "dataset", None), "dataset", None)
    if isinstance(images, SeededDataset):
        mapper = getattr(images.mapper, "mapper", images.mapper)  # without copy-paste
        require_assigned_objects(cfg, model, images.dataset, mapper)


def why_nothing(problems: Sequence[Problem], records: Sequence[dict[str, Any]]) -> str:
    """Say why no annotation of a data set is an object to learn.

    Args:
        problems: with its entries.
        records: its images, with the annotations that are not left out.
    """
    if not records:
        return "the list of images is empty"
    left_out = [problem for problem in problems if problem.kind in (COVERS_NOTHING, OUTSIDE)]
    boxes = sum(problem.reason == BOX_ONLY for problem in left_out)
    crowds = sum(not is_object(a) for record in records for a in record.get("annotations", ()))
    reasons = []
    if boxes:
        reasons.append(
            "there are boxes but no masks: annotations with a 'bbox' and an empty 'segmentation': "
            f"{boxes}. SOLO learns from masks: annotate polygons or RLE"
        )
    if crowds:
        reasons.append(
            "there are only crowd regions: annotations with 'iscrowd' 1, which training ignores: "
            f"{crowds}. Set it to 0 for all that are no groups of objects"
        )
    if len(left_out) > boxes:
        others = [problem for problem in left_out if problem.reason != BOX_ONLY]
        outside = [problem for problem in others if problem.kind == OUTSIDE]
        if outside:
            reasons.append(f"{len(outside)} annotations lie outside their images")
        covering = [problem for problem in others if problem.kind != OUTSIDE]
        if covering:
            reasons.append(f"{len(covering)} annotations cover nothing: {count_reasons(covering)}")
    return "; ".join(reasons) or f"none of the {len(records)} images has an annotation"


def nothing_to_train(names: Sequence[str]) -> str:
    """The reasons of several data sets, which are read again for it."""
    reasons = []
    for name in names:
        problems: list[Problem] = []
        # The entries of a data set that a function makes need names of classes; its dicts do not.
        records = read_entries(name, problems.append).records or DatasetCatalog.get(name)
        if len(without_objects(records)) == len(records):
            reasons.append(f"'{name}': {why_nothing(problems, records)}")
    return "; ".join(reasons)


def require_objects(cfg: CfgNode, records: Any) -> None:
    """Refuse to train an instance model on images without an object.

    Args:
        cfg: of the training.
        records: dataset dicts of the training; what is no list passes.

    Raises:
        DatasetError: naming data sets and reasons.
    """
    if not isinstance(records, list) or is_panoptic(cfg):
        return
    if len(without_objects(records)) == len(records):
        raise DatasetError(f"{_NOTHING}: {nothing_to_train(cfg.DATASETS.TRAIN)}")


def require_assigned_objects(cfg: CfgNode, model: Any, images: Any, mapper: Any) -> None:
    """Refuse to train an instance model on objects of which none reaches a cell.

    Follow objects of random images until one is assigned to a cell, nearly always in the first.

    Args:
        cfg: of the training.
        model: the SOLO model that is trained.
        images: dataset dicts of the training.
        mapper: of the training. What others than this project's do with an object is not known.

    Raises:
        DatasetError: no object of any image is assigned to a cell.
    """
    if is_panoptic(cfg) or type(mapper) is not SOLODatasetMapper:
        return
    inspector = Inspector(cfg, TargetRule(cfg, model), model.num_classes)
    followed: list[Objects] = []
    for index in random.Random(0).sample(range(len(images)), len(images)):
        if len(followed) == _MOST_IMAGES:
            logger.warning(
                "Of %d images drawn at random %s", len(followed), describe_outcomes(followed)
            )
            return
        if not any(map(is_object, images[index].get("annotations", ()))):
            continue
        objects = inspector.inspect(index, images[index], with_objects=True).objects
        if (
            objects is None or (objects.outcomes == ASSIGNED).any()
        ):  # None: another check's business
            return
        followed.append(objects)
    if followed:
        raise DatasetError(f"{_NOTHING}: {describe_outcomes(followed)}")


def describe_outcomes(parts: Sequence[Objects]) -> str:
    """Say what becomes of objects of which none is assigned to a cell, and what to change."""
    objects = Objects.join(parts)
    total = len(objects.outcomes)
    counts = ", ".join(
        f"{(objects.outcomes == outcome).sum()} x {name}"
        for outcome, name in enumerate(OUTCOMES)
        if (objects.outcomes == outcome).any()
    )
    return (
        f"none of {total} objects reaches a cell at its size in training ({counts}). Change "
        "INPUT.MIN_SIZE_TRAIN, MODEL.SOLO.SCALE_RANGES or NUM_GRIDS; tools/check_dataset.py "
        "proposes values"
    )
