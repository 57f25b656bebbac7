"""Check whether sizes, grids and scale ranges of a config suit a data set; propose better ones.

All shares of lost objects assign the objects at their training size by `solo_d2.targets`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from solo_d2.data.augmentation import usual_short_side
from tools.dataset_check.objects import ASSIGNED, Inspector, Objects, TargetRule
from tools.dataset_check.proposal import Levels, propose

# Maximum share of lost objects of a fitting config; on COCO the published ones lose 2.5 %.
LOST_LIMIT = 0.05
# Number of images to try other sizes on.
_SAMPLE = 40
_FACTORS = (1.5, 2.0, 3.0, 4.0)
_LARGEST_SIDE = 4096
# Maximum mask pixels to process per size (1e9 take about 3 seconds), and at once.
_MASK_PIXELS, _PIXELS_AT_ONCE = 4 * 10**9, 5 * 10**8
# Minimum reduction of the share of lost objects to propose larger images.
_WORTHWHILE = 0.01
# Check training sizes that differ from the typical one by more than this factor.
_OTHER_SIZE = 1.2


@dataclass(frozen=True)
class LargerImages:
    """Image sizes that lose fewer objects, measured on a sample of the images."""

    keys: dict[str, Any]  # of the config, with their values
    levels: Levels  # proposed at this size
    lost: float  # share of lost objects with both
    lost_before: float  # with the best levels at the config's size
    num_images: int  # in the sample


@dataclass(frozen=True)
class Fit:
    """How well a config fits the objects."""

    lost: float  # share of lost objects
    levels: Levels  # proposed; those of the config if no others lose fewer
    lost_with_levels: float
    at_sizes: dict[int, float]  # share by short side of INPUT.MIN_SIZE_TRAIN
    larger: LargerImages | None = None  # if needed and better

    @property
    def most_lost(self) -> float:
        """Share of lost objects at the training size that loses most."""
        return max(self.lost, *self.at_sizes.values(), 0.0)

    @property
    def good(self) -> bool:
        """Whether few enough objects are lost at every size."""
        return self.most_lost <= LOST_LIMIT


class FitFinder:
    """Measures how well a config fits a data set, and searches better values."""

    def __init__(
        self,
        cfg: CfgNode,
        rule: TargetRule,
        num_classes: int,
        records: Sequence[dict[str, Any]],
        images: Sequence[Objects],
        seed: int,
    ):
        """Take `images`: the objects of each inspected image; `seed` selects the sample."""
        self.cfg, self.rule, self.num_classes = cfg, rule, num_classes
        self.records, self.images = records, images
        with_objects = [each for each in images if each["area"].any()]
        count = min(_SAMPLE, len(with_objects))
        self.sample = random.Random(seed).sample(with_objects, count)

    def find(self) -> Fit | None:
        """Evaluate the config; None without objects."""
        found = self._choose_levels(self.images)
        if found is None:
            return None
        fit = Fit(lost_share(self.rule, self.images), *found, self._at_other_sizes())
        if fit.lost_with_levels <= LOST_LIMIT:
            return fit
        return replace(fit, larger=self._enlarge(fit.levels))

    def _choose_levels(self, images: Sequence[Objects]) -> tuple[Levels, float] | None:
        """Return the grids and scale ranges that lose the fewest objects, and that share."""
        levels, objects = Levels.of_config(self.cfg), np.concatenate(images)
        tried = [(lost_share(self.rule, images), levels)]
        for keep_ranges in (False, True):
            strides = list(self.cfg.MODEL.SOLO.STRIDES)
            proposal = propose(objects, levels, strides, keep_ranges=keep_ranges)
            if proposal is None:
                return None
            rule = self.rule.with_levels(proposal.num_grids, proposal.scale_ranges)
            tried.append((lost_share(rule, images), proposal))
        # In case of a tie: first proposal, second proposal, config.
        lost, best = min([*tried[1:], tried[0]], key=lambda each: each[0])
        return best, lost

    def _at_other_sizes(self) -> dict[int, float]:
        """Return the share of lost objects at the smallest and largest training size."""
        given = self.cfg.INPUT
        usual, sides = usual_short_side(self.cfg), given.MIN_SIZE_TRAIN
        if given.LSJ.ENABLED or 0 in sides or not self.sample:
            return {}
        return {
            int(side): lost_share(
                self.rule, self._follow({"INPUT.MIN_SIZE_TRAIN": (side,)}, self.sample)
            )
            for side in (min(sides), max(sides))
            if max(side, usual) > _OTHER_SIZE * min(side, usual)
        }

    def _enlarge(self, levels: Levels) -> LargerImages | None:
        """Return the smallest images that lose few enough objects, or the fewest."""
        rule = self.rule.with_levels(levels.num_grids, levels.scale_ranges)
        best: LargerImages | None = None
        for factor in _FACTORS:
            keys = self._enlarged_keys(factor)
            costs = np.cumsum([_mask_pixels(each) * factor**2 for each in self.sample])
            part = self.sample[: int((costs <= _MASK_PIXELS).sum())]
            if not keys or not part:
                break
            found = self._choose_levels(self._follow(keys, part, factor))
            if found is None:
                break
            before = lost_share(rule, part)
            if found[1] < min(before - _WORTHWHILE, 1.0 if best is None else best.lost):
                best = LargerImages(keys, *found, before, len(part))
            if found[1] <= LOST_LIMIT:
                break
        return best

    def _enlarged_keys(self, factor: float) -> dict[str, Any]:
        """Return config keys that enlarge the images; empty if they would be too large."""
        given = self.cfg.INPUT
        if given.LSJ.ENABLED:
            size = round(given.LSJ.SIZE * factor)
            return {"INPUT.LSJ.SIZE": size} if size <= _LARGEST_SIDE else {}
        sizes = []
        for objects in self.sample:  # image size, if the record has it
            record = self.records[objects["image"][0]]
            height, width = _input_size(objects)
            sizes.append((record.get("height", height), record.get("width", width)))
        own = float(np.median([min(size) for size in sizes]))
        sides = tuple(round((side or own) * factor) for side in given.MIN_SIZE_TRAIN)
        if max(sides) > _LARGEST_SIDE:
            return {}
        longest = round(given.MAX_SIZE_TRAIN * factor)
        if 0 in given.MIN_SIZE_TRAIN:
            needed = max(max(size) / min(size) for size in sizes) * max(sides)
            longest = max(given.MAX_SIZE_TRAIN, int(np.ceil(needed)))
        keys = {"INPUT.MIN_SIZE_TRAIN": sides, "INPUT.MAX_SIZE_TRAIN": longest}
        usual = usual_short_side(_changed(self.cfg, keys))
        return {**keys, "INPUT.MIN_SIZE_TEST": usual, "INPUT.MAX_SIZE_TEST": longest}

    def _follow(
        self, keys: dict[str, Any], sample: Sequence[Objects], factor: float = 1.0
    ) -> list[Objects]:
        """Assign the objects of images again, about `factor` times as large with these keys."""
        inspector = Inspector(_changed(self.cfg, keys), self.rule, self.num_classes)
        result = []
        for objects in sample:
            index = int(objects["image"][0])
            record = self.records[index]
            annotations = record["annotations"]
            # Masks of many objects at once would take too much memory.
            count = max(1, -(-int(_mask_pixels(objects) * factor**2) // _PIXELS_AT_ONCE))
            step = -(-len(annotations) // count)
            parts = [
                inspector.inspect(index, {**record, "annotations": annotations[i : i + step]}, True)
                for i in range(0, len(annotations), step)
            ]
            found = [part.objects for part in parts if part.objects is not None]
            result.append(np.concatenate([objects[:0], *found]))
        return result


def _input_size(objects: Objects) -> tuple[int, int]:
    height, width = objects["input"].max(axis=0).astype(int).tolist()
    return height, width


def _mask_pixels(objects: Objects) -> int:
    height, width = _input_size(objects)
    return int((objects["area"] > 0).sum()) * height * width


def lost_share(rule: TargetRule, images: Sequence[Objects]) -> float:
    """Return the share of objects that are assigned to no cell."""
    there = [objects[objects["area"] > 0] for objects in images]
    assigned = sum(int((rule.outcomes(part) == ASSIGNED).sum()) for part in there if len(part))
    total = sum(map(len, images))
    return 1 - assigned / total if total else 0.0


def _changed(cfg: CfgNode, keys: dict[str, Any]) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in keys.items():
        cfg.merge_from_list([key, value])
    return cfg
