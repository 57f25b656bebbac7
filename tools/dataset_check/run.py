"""Checks a data set: its json, its images, its objects."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from solo_d2.config.models import is_panoptic
from solo_d2.data.entries import read_entries
from solo_d2.data.ignored import find_ignored, is_object, without_objects
from solo_d2.data.problems import ERROR, NOTICE, Problem
from solo_d2.engine.training_data import why_nothing
from tools.dataset_check.fit import Fit, FitFinder
from tools.dataset_check.objects import (
    ASSIGNED,
    UNREADABLE_FILE,
    Inspection,
    Inspector,
    Objects,
    TargetRule,
    describe_outcomes,
)

# The kind of problem of a data set without an object to train on.
NO_OBJECTS = "no objects"


@dataclass
class Findings:
    """What is known of a data set.

    Attributes:
        name: of the data set.
        problems: all of them, in the order of their discovery.
        num_images: that can be looked at.
        num_annotations: that training takes, crowds included.
        num_crowds: of these.
        num_without_objects: images without annotations other than crowds.
        objects: those that were followed to their cells; None where none were.
        num_inspected: images whose objects were.
        fit: how the config suits the objects; None without objects.
        inspector: made the objects, and can make samples to look at.
        records: dataset dicts of the images.
        class_names: of the K classes.
    """

    name: str
    problems: list[Problem] = field(default_factory=list)
    num_images: int = 0
    num_annotations: int = 0
    num_crowds: int = 0
    num_without_objects: int = 0
    objects: Objects | None = None
    num_inspected: int = 0
    fit: Fit | None = None
    inspector: Inspector | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    class_names: Sequence[str] = ()

    @property
    def training_fails(self) -> bool:
        """Whether something is wrong that training refuses."""
        return any(problem.severity == ERROR for problem in self.problems)


class _Images(Dataset[Inspection]):
    """The images of a data set, as what was found in them."""

    def __init__(self, records: Sequence[dict[str, Any]], inspector: Inspector, followed: set[int]):
        self.records = records
        self.inspector = inspector
        self.followed = followed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Inspection:
        return self.inspector.inspect(index, self.records[index], index in self.followed)


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
        cfg: of the training.
        name: of the data set.
        open_images: whether images are read and objects are followed; else the json alone is read.
        max_followed: images whose objects are followed to their cells, drawn at random where there
            are more; 0 for none. All others are read too.
        workers: processes that open images; 0: this one.
        seed: of that draw.

    Raises:
        ConfigError: the config's model cannot be built.
    """
    found = Findings(name)
    entries = read_entries(name, found.problems.append)
    found.records, found.class_names = entries.records, entries.class_names
    found.num_images = len(found.records)
    annotations = [a for record in found.records for a in record.get("annotations", [])]
    found.num_annotations = len(annotations)
    found.num_crowds = len(annotations) - sum(map(is_object, annotations))
    found.num_without_objects = len(without_objects(found.records))
    if not found.training_fails:
        found.problems += _empty_problems(name, found)
    if name not in cfg.DATASETS.TEST:
        found.problems += find_ignored(name, found.records, found.class_names)
    if not open_images or not found.records or not found.class_names:
        return found
    cfg = cfg.clone()
    cfg.defrost()
    # Numbers with which a model can be built: `resolve_num_classes` reports those of the data.
    cfg.MODEL.SOLO.NUM_CLASSES = 1
    num_stuff = len(MetadataCatalog.get(name).get("stuff_classes", ()))
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = max(2, num_stuff)
    rule = TargetRule(cfg)
    rule.params["num_classes"] = len(found.class_names)
    found.inspector = Inspector(cfg, rule, len(found.class_names))
    indices = range(len(found.records))
    followed = set(random.Random(seed).sample(indices, min(max_followed, len(indices))))
    inspections = _inspect(found, followed, workers)
    found.problems += _unreadable_problems(cfg, found)
    parts = [each.objects for each in inspections if each.objects is not None]
    found.num_inspected = len(parts)
    if parts:
        found.objects = Objects.join(parts)
        finder = FitFinder(cfg, rule, len(found.class_names), seed)
        found.fit = finder.find(found.records, inspections)
    return found


def _empty_problems(name: str, found: Findings) -> list[Problem]:
    """That there is nothing to train on, or to evaluate."""
    where = f"data set '{name}'"
    if not found.records:
        return [Problem("no images", where, "the list of images is empty")]
    if found.num_annotations > found.num_crowds:
        return []
    return [Problem(NO_OBJECTS, where, why_nothing(found.problems, found.records), NOTICE)]


def refuse_nothing(cfg: CfgNode, trained: Sequence[Findings]) -> None:
    """Turn it into an error if all data sets of a training together have nothing to train on."""
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
    followed = [found.objects for found in trained if found.objects is not None]
    outcomes = Objects.join(followed).outcomes
    if len(outcomes) and not (outcomes == ASSIGNED).any():
        where = ", ".join(f"'{found.name}'" for found in trained)
        trained[0].problems.append(
            Problem(
                "no object is assigned to a cell", f"data set {where}", describe_outcomes(followed)
            )
        )


def _unreadable_problems(cfg: CfgNode, found: Findings) -> list[Problem]:
    """That more files cannot be read than training tolerates."""
    count = len({p.reason for p in found.problems if p.kind == UNREADABLE_FILE})
    limit = cfg.DATALOADER.MAX_UNREADABLE_IMAGES
    if found.name not in cfg.DATASETS.TRAIN or count <= limit:
        return []
    reason = f"{count}, and DATALOADER.MAX_UNREADABLE_IMAGES is {limit}"
    return [Problem("too many unreadable image files", f"data set '{found.name}'", reason)]


def _inspect(found: Findings, followed: set[int], workers: int) -> list[Inspection]:
    """Look at all images; what is wrong with them joins the other problems."""
    assert found.inspector is not None
    data = _Images(found.records, found.inspector, followed)
    # Each image goes to a worker by itself: they take different times.
    loader: DataLoader[Inspection] = DataLoader(data, batch_size=None, num_workers=workers)
    inspections = []
    for inspection in tqdm(loader, found.name, unit="image", mininterval=1.0):
        found.problems += inspection.problems
        inspections.append(inspection)
    return inspections
