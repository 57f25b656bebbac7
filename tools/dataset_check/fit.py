"""Whether a config's image sizes, grids and scale ranges suit a data set, and what would suit it.

All shares of lost objects, those of proposals too, come from one computation: objects at their size
in training are assigned to cells by `solo_d2.targets`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from solo_d2.data.augmentation import usual_short_side
from tools.dataset_check.objects import ASSIGNED, Inspection, Inspector, Layout, Objects, TargetRule
from tools.dataset_check.proposal import Proposal, propose

# Share of lost objects up to which a config fits; on COCO the published ones lose 2.5 %.
LOST_LIMIT = 0.05
# Other image sizes are tried on so many images.
_SAMPLE = 40
_FACTORS = (1.5, 2.0, 3.0, 4.0)
_LARGEST_SIDE = 4096
# Pixels of all masks that are drawn for a size (1e9 take about 3 seconds), and of those at once.
_MASK_PIXELS, _PIXELS_AT_ONCE = 4 * 10**9, 5 * 10**8
# Larger images that do not lose at least this share less are not worth their time.
_WORTHWHILE = 0.01
# A training size that differs from the usual one by more is looked at, too.
_OTHER_SIZE = 1.2


@dataclass(frozen=True)
class LargerImages:
    """Image sizes that lose fewer objects, found on a part of the images.

    Attributes:
        keys: of the config, with their values.
        proposal: grids and scale ranges at this size.
        lost: share of the objects that are lost with both.
        lost_before: the same with the best values at the config's size.
        num_images: that were looked at.
    """

    keys: dict[str, Any]
    proposal: Proposal
    lost: float
    lost_before: float
    num_images: int


@dataclass(frozen=True)
class Fit:
    """How a config suits the objects.

    Attributes:
        lost: share of the objects that are lost.
        proposal: grids and scale ranges, those of the config where no others lose fewer.
        lost_with_proposal: share of the objects that are lost with it.
        at_sizes: by short side of INPUT.MIN_SIZE_TRAIN, the share where images have that size.
        larger: None where it is not needed or does not help.
    """

    lost: float
    proposal: Proposal
    lost_with_proposal: float
    at_sizes: dict[int, float] = field(default_factory=dict)
    larger: LargerImages | None = None

    @property
    def most_lost(self) -> float:
        """Share of lost objects at the training size that loses most."""
        return max(self.lost, *self.at_sizes.values(), 0.0)

    @property
    def good(self) -> bool:
        """Whether few enough objects are lost, at every size."""
        return self.most_lost <= LOST_LIMIT


class FitFinder:
    """Finds how a config suits a data set."""

    def __init__(self, cfg: CfgNode, rule: TargetRule, num_classes: int, seed: int = 0):
        """Prepare.

        Args:
            cfg: of the training.
            rule: how its model assigns objects.
            num_classes: K.
            seed: of the draw of the images on which other sizes are tried.
        """
        self.cfg, self.rule, self.num_classes, self.seed = cfg, rule, num_classes, seed

    def find(
        self, records: Sequence[dict[str, Any]], inspections: Sequence[Inspection]
    ) -> Fit | None:
        """Judge the config, and look for better values where it loses objects.

        Args:
            records: dataset dicts of all images.
            inspections: of those whose objects were followed.

        Returns:
            None without objects.
        """
        parts = [each for each in inspections if each.objects is not None]
        found = self._choose_levels(parts)
        if found is None:
            return None
        proposal, lost_with_proposal = found
        with_objects = [each for each in parts if each.layout is not None]
        count = min(_SAMPLE, len(with_objects))
        sample = random.Random(self.seed).sample(with_objects, count)
        fit = Fit(
            lost=lost_share(self.rule, parts),
            proposal=proposal,
            lost_with_proposal=lost_with_proposal,
            at_sizes=self._at_other_sizes(records, sample),
        )
        if lost_with_proposal <= LOST_LIMIT:
            return fit
        return replace(fit, larger=self._enlarge(records, sample, proposal))

    def _choose_levels(self, parts: Sequence[Inspection]) -> tuple[Proposal, float] | None:
        """Grids and scale ranges that lose the fewest objects, and the share that is lost."""
        objects = Objects.join([each.objects for each in parts if each.objects is not None])
        layouts = [each.layout for each in parts if each.layout is not None]
        grids, ranges = self.rule.params["num_grids"], self.rule.params["scale_ranges"]
        best: tuple[Proposal, float] | None = None
        for keep_ranges in (False, True):
            proposal = propose(
                objects,
                num_grids=grids,
                scale_ranges=ranges,
                strides=list(self.cfg.MODEL.SOLO.STRIDES),
                short_side=float(np.median([min(each.padded_size) for each in layouts] or [0])),
                keep_ranges=keep_ranges,
            )
            if proposal is None:
                return None
            levels = self.rule.with_levels(proposal.num_grids, proposal.scale_ranges)
            lost = lost_share(levels, parts)
            if best is None or lost < best[1]:
                best = proposal, lost
        assert best is not None
        now = lost_share(self.rule, parts)
        return best if best[1] <= now else (best[0].unchanged(grids, ranges), now)

    def _at_other_sizes(
        self, records: Sequence[dict[str, Any]], sample: Sequence[Inspection]
    ) -> dict[int, float]:
        """Share of lost objects at the smallest and the largest size of training images."""
        given = self.cfg.INPUT
        usual, sides = usual_short_side(self.cfg), given.MIN_SIZE_TRAIN
        if given.LSJ.ENABLED or 0 in sides or not sample:
            return {}
        shares = {}
        for side in (min(sides), max(sides)):
            if max(side, usual) > _OTHER_SIZE * min(side, usual):
                cfg = _changed(self.cfg, {"INPUT.MIN_SIZE_TRAIN": (side,)})
                shares[int(side)] = lost_share(self.rule, self._follow(cfg, records, sample))
        return shares

    def _enlarge(
        self, records: Sequence[dict[str, Any]], sample: Sequence[Inspection], proposal: Proposal
    ) -> LargerImages | None:
        """The smallest images that lose few enough objects, or the fewest."""
        levels = self.rule.with_levels(proposal.num_grids, proposal.scale_ranges)
        best: LargerImages | None = None
        for factor in _FACTORS:
            keys = self._enlarged_keys(factor, records, sample)
            costs = np.cumsum([_mask_pixels(each) * factor**2 for each in sample])
            part = sample[: int((costs <= _MASK_PIXELS).sum())]
            if not keys or not part:
                break
            found = self._choose_levels(
                self._follow(_changed(self.cfg, keys), records, part, factor)
            )
            if found is None:
                break
            before = lost_share(levels, part)
            if found[1] < min(before - _WORTHWHILE, 1.0 if best is None else best.lost):
                best = LargerImages(keys, *found, before, len(part))
            if found[1] <= LOST_LIMIT:
                break
        return best

    def _enlarged_keys(
        self, factor: float, records: Sequence[dict[str, Any]], sample: Sequence[Inspection]
    ) -> dict[str, Any]:
        """Keys of the config that enlarge its images; none where they would be too large."""
        given = self.cfg.INPUT
        if given.LSJ.ENABLED:
            size = round(given.LSJ.SIZE * factor)
            return {"INPUT.LSJ.SIZE": size} if size <= _LARGEST_SIDE else {}
        sizes = [_image_size(records[each.index], each) for each in sample]
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
        self,
        cfg: CfgNode,
        records: Sequence[dict[str, Any]],
        sample: Sequence[Inspection],
        factor: float = 1.0,
    ) -> list[Inspection]:
        """Follow the objects of some images again.

        Args:
            cfg: another config.
            records: dataset dicts of all images.
            sample: how the images were with the first config.
            factor: by which the other one enlarges them, about.
        """
        inspector = Inspector(cfg, self.rule, self.num_classes)
        result = []
        for each in sample:
            record = records[each.index]
            annotations = record["annotations"]
            # Masks of many objects at once would take too much memory.
            count = -(-int(_mask_pixels(each) * factor**2) // _PIXELS_AT_ONCE)
            step = max(1, -(-len(annotations) // max(1, count)))
            starts = range(0, len(annotations), step)
            slices = [{**record, "annotations": annotations[i : i + step]} for i in starts]
            parts = [inspector.inspect(each.index, part, with_objects=True) for part in slices]
            layouts = [part.layout for part in parts if part.layout is not None]
            objects = Objects.join([part.objects for part in parts if part.objects is not None])
            layout = Layout.join(layouts) if layouts else None
            result.append(Inspection(each.index, objects=objects, layout=layout))
        return result


def _mask_pixels(inspection: Inspection) -> int:
    """Pixels of all masks of an image at the config's size."""
    assert inspection.layout is not None
    height, width = inspection.layout.padded_size
    return len(inspection.layout.boxes) * height * width


def lost_share(rule: TargetRule, inspections: Sequence[Inspection]) -> float:
    """Share of the objects that are assigned to no cell."""
    total = sum(len(each.objects.outcomes) for each in inspections if each.objects is not None)
    assigned = sum(
        int((rule.outcomes(each.layout) == ASSIGNED).sum())
        for each in inspections
        if each.layout is not None
    )
    return 1 - assigned / total if total else 0.0


def _changed(cfg: CfgNode, keys: dict[str, Any]) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in keys.items():
        cfg.merge_from_list([key, value])
    return cfg


def _image_size(record: dict[str, Any], inspection: Inspection) -> tuple[int, int]:
    """Height and width of an image, or of the network's input where the record lacks them."""
    assert inspection.layout is not None
    height, width = inspection.layout.padded_size
    return record.get("height", height), record.get("width", width)
