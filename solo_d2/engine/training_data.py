"""Training data of a config: its loader, and checks that it contains objects to train on."""

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.build import _train_loader_from_config
from detectron2.data.common import DatasetFromList
from torch.utils.data import DataLoader

from solo_d2.data.coco_format import BOX_ONLY, COVERS_NOTHING, OUTSIDE
from solo_d2.data.copy_paste import wrap_with_copy_paste
from solo_d2.data.entries import read_entries
from solo_d2.data.ignored import is_object, without_objects
from solo_d2.data.loader import SeededDataset, make_train_loader
from solo_d2.data.other_models import without_other_inputs
from solo_d2.data.own_loaders import use_own_loaders
from solo_d2.data.problems import Problem, count_reasons
from solo_d2.modeling.meta_arch.panoptic import PanopticSOLO
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.user_code import from_user_code

logger = logging.getLogger(__name__)

# Training samples to search for an object that is assigned to a cell; usually the first has one.
_NUM_SAMPLES = 50


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]) -> DataLoader[Any]:
    """Build the infinite training loader of a config.

    Args:
        cfg: the config; SEED determines order and augmentation (-1 is a seed too).
        mapper: maps a data set dict to a training sample; with copy-paste, two of them.

    Returns:
        A loader of lists of SOLVER.IMS_PER_BATCH / processes samples. To start from a later batch,
        set `loader.batch_sampler.start_batch` before iterating.

    Raises:
        DatasetError: the data cannot be used, or is empty.
    """
    use_own_loaders(cfg.DATASETS.TRAIN)
    with explaining_no_data(cfg.DATASETS.TRAIN):
        parts = _train_loader_from_config(without_other_inputs(cfg), mapper=mapper)
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
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )


@contextlib.contextmanager
def explaining_no_data(names: Sequence[str]) -> Iterator[None]:
    """Turn Detectron2's assertion for empty data sets into a DatasetError with the reason."""
    try:
        yield
    except AssertionError as error:
        if from_user_code(error):
            raise
        reason = _why_no_objects(names) if names else "no data set is named"
        raise _nothing(names, reason or str(error)) from error


def require_trainable(names: Sequence[str], model: Any, loader: Any) -> None:
    """Raise a DatasetError if the data has no objects, or none that is assigned to a cell.

    Checks up to `_NUM_SAMPLES` training samples; with more images, logs a warning instead. Panoptic
    and other models and custom loaders are not checked.
    """
    samples = getattr(loader, "dataset", None)
    if not isinstance(samples, SeededDataset) or not isinstance(model, SOLO):
        return
    if isinstance(model, PanopticSOLO):
        return
    records = samples.dataset
    order = random.Random(0).sample(range(len(records)), len(records))
    with_objects = (i for i in order if any(map(is_object, records[i].get("annotations", ()))))
    chosen = list(itertools.islice(with_objects, _NUM_SAMPLES))  # reading all would take seconds
    if not chosen:
        raise _nothing(names, _why_no_objects(names))
    for place, index in zip(range(_NUM_SAMPLES), itertools.cycle(chosen), strict=False):
        sample = samples[place, index]
        if isinstance(sample, DatasetError):  # training reports it
            return
        targets = model.plan_micro_batches([[sample]])[0].targets
        if targets.num_positive_cells and any(masks.any() for masks in targets.masks.values()):
            return
    reason = (
        "no object is assigned to a cell at its training size. Change INPUT.MIN_SIZE_TRAIN, "
        "MODEL.SOLO.SCALE_RANGES or NUM_GRIDS; tools/check_dataset.py lists reasons and suggests "
        "values"
    )
    if len(chosen) < _NUM_SAMPLES:
        raise _nothing(names, reason)
    logger.warning("Of %d training samples drawn at random %s", _NUM_SAMPLES, reason)


def _nothing(names: Sequence[str], reason: str) -> DatasetError:
    return DatasetError(f"There is nothing to train on in DATASETS.TRAIN {tuple(names)}: {reason}")


def _why_no_objects(names: Sequence[str]) -> str:
    """Return the reasons of several data sets, which are read again."""
    reasons = []
    for name in names:
        problems: list[Problem] = []
        # Entries of a data set defined by a function require class names; its dicts do not.
        records = read_entries(name, problems.append)[0] or DatasetCatalog.get(name)
        if len(without_objects(records)) == len(records):
            reasons.append(f"'{name}': {why_nothing(problems, records)}")
    return "; ".join(reasons)


def why_nothing(problems: Sequence[Problem], records: Sequence[dict[str, Any]]) -> str:
    """Explain why a data set has no object to train on.

    Args:
        problems: problems with its entries.
        records: its images, with the annotations that are used.
    """
    if not records:
        return "the list of images is empty"
    left_out = [problem for problem in problems if problem.kind in (COVERS_NOTHING, OUTSIDE)]
    others = [problem for problem in left_out if problem.reason != BOX_ONLY]
    covering = [problem for problem in others if problem.kind != OUTSIDE]
    boxes, outside = len(left_out) - len(others), len(others) - len(covering)
    crowds = sum(not is_object(a) for record in records for a in record.get("annotations", ()))
    reasons = {
        "there are boxes but no masks: annotations with a 'bbox' and an empty 'segmentation': "
        f"{boxes}. SOLO is trained on masks: annotate polygons or RLE": boxes,
        "there are only crowd regions: annotations with 'iscrowd' 1, which training ignores: "
        f"{crowds}. Set it to 0 unless they are groups of objects": crowds,
        f"{outside} annotations lie outside their images": outside,
        f"{len(covering)} annotations cover nothing: {count_reasons(covering)}": len(covering),
    }
    found = [reason for reason, count in reasons.items() if count]
    return "; ".join(found) or f"none of the {len(records)} images has an annotation"
