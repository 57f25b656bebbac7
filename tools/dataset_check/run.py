"""Check a data set: JSON, images, objects."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MapDataset, MetadataCatalog
from torch.utils.data import DataLoader
from tqdm import tqdm

from solo_d2.config.models import is_panoptic
from solo_d2.data.entries import read_entries
from solo_d2.data.ignored import find_ignored, is_object, without_objects
from solo_d2.data.problems import ERROR, NOTICE, Problem
from solo_d2.engine.training_data import why_nothing
from tools.dataset_check.fit import Fit, FitFinder
from tools.dataset_check.objects import (
    ASSIGNED,
    OUTCOMES,
    UNREADABLE_FILE,
    Inspection,
    Inspector,
    Objects,
    TargetRule,
)

# Problem of a data set without an object to train on.
NO_OBJECTS = "no objects"


@dataclass
class Findings:
    """The findings of a data set."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    num_images: int = 0  # readable entries
    num_annotations: int = 0  # used in training, with crowds
    num_crowds: int = 0
    num_without_objects: int = 0  # images, crowds ignored
    objects: Objects | None = None  # those assigned to cells, if any
    num_inspected: int = 0  # images with assigned objects
    fit: Fit | None = None
    inspector: Inspector | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    class_names: Sequence[str] = ()

    @property
    def training_fails(self) -> bool:
        """Whether training would raise an error."""
        return any(problem.severity == ERROR for problem in self.problems)


def check_dataset(
    cfg: CfgNode,
    name: str,
    *,
    open_images: bool = True,
    max_followed: int = 5000,
    workers: int = 0,
    seed: int = 0,
) -> Findings:
    """Check a registered data set.

    Args:
        cfg: config of the training.
        name: name of the data set.
        open_images: whether to read images and assign objects; otherwise only the JSON is read.
        max_followed: maximum number of images whose objects are assigned to cells, drawn at random.
            All others are read too.
        workers: processes that open images; 0: this one.
        seed: random seed of the selection.
    """
    found = Findings(name)
    found.records, found.class_names = read_entries(name, found.problems.append)
    found.num_images = len(found.records)
    annotations = [a for record in found.records for a in record.get("annotations", [])]
    found.num_annotations = len(annotations)
    found.num_crowds = len(annotations) - sum(map(is_object, annotations))
    found.num_without_objects = len(without_objects(found.records))
    where = f"data set '{name}'"
    if not found.records and not found.training_fails:
        found.problems.append(Problem("no images", where, "the list of images is empty"))
    elif found.num_annotations == found.num_crowds and not found.training_fails:
        reason = why_nothing(found.problems, found.records)
        found.problems.append(Problem(NO_OBJECTS, where, reason, NOTICE))
    if name not in cfg.DATASETS.TEST:
        found.problems += find_ignored(name, found.records, found.class_names)
    if open_images and found.records and found.class_names:
        indices = range(found.num_images)
        followed = set(random.Random(seed).sample(indices, min(max_followed, len(indices))))
        _check_images(cfg, found, followed, workers, seed)
    return found


def _check_images(
    cfg: CfgNode, found: Findings, followed: set[int], workers: int, seed: int
) -> None:
    cfg = cfg.clone()
    cfg.defrost()
    # Placeholders to build a model: `resolve_num_classes` checks those of the data.
    cfg.MODEL.SOLO.NUM_CLASSES = 1
    num_stuff = len(MetadataCatalog.get(found.name).get("stuff_classes", ()))
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = max(2, num_stuff)
    rule, num_classes = TargetRule(cfg), len(found.class_names)
    rule.params["num_classes"] = num_classes
    found.inspector = inspector = Inspector(cfg, rule, num_classes)

    def inspect(index: int) -> Inspection:
        return inspector.inspect(index, found.records[index], index in followed)

    # One image per task, since processing times differ.
    data = MapDataset(range(found.num_images), inspect)
    loader: DataLoader[Inspection] = DataLoader(data, batch_size=None, num_workers=workers)
    images = []
    for inspection in tqdm(loader, found.name, unit="image", mininterval=1.0):
        found.problems += inspection.problems
        if inspection.objects is not None:
            images.append(inspection.objects)
    files = {p.reason for p in found.problems if p.kind == UNREADABLE_FILE}
    limit = cfg.DATALOADER.MAX_UNREADABLE_IMAGES
    if found.name in cfg.DATASETS.TRAIN and len(files) > limit:
        where = f"data set '{found.name}'"
        reason = f"{len(files)}, and DATALOADER.MAX_UNREADABLE_IMAGES is {limit}"
        found.problems.append(Problem("too many unreadable image files", where, reason))
    if images:
        found.num_inspected, found.objects = len(images), np.concatenate(images)
        found.fit = FitFinder(cfg, rule, num_classes, found.records, images, seed).find()


def refuse_nothing(cfg: CfgNode, trained: Sequence[Findings]) -> None:
    """Add an error if all training data sets together have nothing to train on."""
    empty = [any(p.kind == NO_OBJECTS for p in found.problems) for found in trained]
    semantic = is_panoptic(cfg) and not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if not trained or semantic:
        return
    if all(empty):
        for found in trained:
            found.problems = [
                replace(p, severity=ERROR) if p.kind == NO_OBJECTS else p for p in found.problems
            ]
        return
    parts = [found.objects["outcome"] for found in trained if found.objects is not None]
    outcomes = np.concatenate(parts) if parts else np.zeros(0)
    if len(outcomes) and not (outcomes == ASSIGNED).any():
        counts = ", ".join(
            f"{(outcomes == outcome).sum()} x {name}"
            for outcome, name in enumerate(OUTCOMES)
            if (outcomes == outcome).any()
        )
        where = "data set " + ", ".join(f"'{found.name}'" for found in trained)
        reason = (
            f"none of {len(outcomes)} objects reaches a cell at its size in training ({counts}). "
            "Change INPUT.MIN_SIZE_TRAIN, MODEL.SOLO.SCALE_RANGES or NUM_GRIDS; "
            "tools/check_dataset.py proposes values"
        )
        trained[0].problems.append(Problem("no object is assigned to a cell", where, reason))
