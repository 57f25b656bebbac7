"""The findings of a check, in words and as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from solo_d2.config.models import is_panoptic
from solo_d2.data.problems import ERROR, NOTICE, SKIPPED, Problem
from tools.benchmarks.common import markdown_table
from tools.dataset_check.fit import LOST_LIMIT, Fit
from tools.dataset_check.objects import ASSIGNED, OUTCOMES, Objects
from tools.dataset_check.proposal import Proposal
from tools.dataset_check.run import Findings

# Examples of each kind of problem.
EXAMPLES = 5
HEADINGS = {
    ERROR: "Training would fail because of",
    SKIPPED: "Training would leave out",
    NOTICE: "Training would take, but please look at",
}
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def format_findings(found: Findings, cfg: CfgNode) -> str:
    """What is printed: problems by kind with counts and examples, objects, proposal."""
    head = (
        f"{found.name}: {found.num_images} images, {found.num_without_objects} of them without "
        f"objects; {found.num_annotations} annotations, {found.num_crowds} of them crowds"
    )
    if found.num_without_objects and found.name in cfg.DATASETS.TRAIN:
        filtered = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        outcome = "left out" if filtered else "trained on, as negatives"
        if is_panoptic(cfg) and not filtered:
            outcome += " and for their stuff labels"
        head += f"\nImages without objects are {outcome} ("
        head += f"DATALOADER.FILTER_EMPTY_ANNOTATIONS {filtered})"
    parts = [head, *_format_problems(found.problems)]
    if not found.problems:
        parts.append("Nothing is wrong with its entries" + (" and files." * bool(found.inspector)))
    if found.objects is not None and len(found.objects.outcomes):
        parts.append(_format_objects(found.objects, found.num_inspected))
    if found.fit is not None:
        parts.append(_format_fit(found.fit, cfg))
    return "\n\n".join(parts)


def format_conclusion(all_findings: Sequence[Findings]) -> str:
    """What training would do, in a line."""
    if any(found.training_fails for found in all_findings):
        return "Training would fail."
    lossy = [
        f"{found.fit.most_lost:.1%} of the objects of {found.name} would not be assigned to a cell"
        + " at the size that loses most" * (found.fit.most_lost > found.fit.lost)
        for found in all_findings
        if found.fit is not None and not found.fit.good
    ]
    return f"Training would run, but {', '.join(lossy)}." if lossy else "Training would work."


def _format_problems(problems: Sequence[Problem]) -> list[str]:
    blocks = []
    for severity, heading in HEADINGS.items():
        kinds = group(problem for problem in problems if problem.severity == severity)
        lines = [f"{heading}:"] * bool(kinds)
        for kind, examples in kinds.items():
            lines.append(f"  {len(examples)} x {kind}")
            lines += [f"      {problem}" for problem in examples[:EXAMPLES]]
            lines += ["      ..."] * (len(examples) > EXAMPLES)
        if lines:
            blocks.append("\n".join(lines))
    return blocks


def group(problems: Any) -> dict[str, list[Problem]]:
    """Problems by kind, the most frequent first."""
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _format_objects(objects: Objects, num_images: int) -> str:
    total = len(objects.outcomes)
    lines = [f"Of {total} objects of {num_images} images, at their size in training, are lost:"]
    for outcome, name in enumerate(OUTCOMES):
        lost = np.flatnonzero(objects.outcomes == outcome)
        if outcome == ASSIGNED or len(lost) == 0:
            continue
        examples = ", ".join(objects.names[index] for index in lost[:EXAMPLES])
        dots = ", ..." * (len(lost) > EXAMPLES)
        lines.append(f"  {len(lost)} ({len(lost) / total:.1%}) {name}: {examples}{dots}")
    if len(lines) == 1:
        lines = [f"All {total} objects of {num_images} images are assigned to cells."]
    scales = objects.scales[~np.isnan(objects.scales)]
    if len(scales):
        values = np.quantile(scales, _QUANTILES)
        listed = ", ".join(
            f"{share:.0%}: {value:.0f}" for share, value in zip(_QUANTILES, values, strict=True)
        )
        lines.append(f"Scales sqrt(w * h) in pixels; so many are below: {listed}")
    return "\n".join(lines)


def _format_fit(fit: Fit, cfg: CfgNode) -> str:
    """Grids and scale ranges of the config and proposed ones, and the share that each loses."""
    solo, proposal = cfg.MODEL.SOLO, fit.proposal
    rows = [
        {
            "level": solo.IN_FEATURES[level],
            "range": _range(solo.SCALE_RANGES[level]),
            "objects": proposal.num_before[level],
            "grid": solo.NUM_GRIDS[level],
            "share a cell": _percent(proposal.shared_before[level]),
            "proposed range": _range(proposal.scale_ranges[level]),
            "objects ": proposal.num_after[level],
            "grid ": proposal.num_grids[level],
            "share a cell ": _percent(proposal.shared_after[level]),
        }
        for level in range(len(proposal.num_grids))
    ]
    parts = [markdown_table(rows), _format_verdict(fit)]
    if differs(proposal, cfg):
        before, after = (
            sum(side * side for side in sides) for sides in (solo.NUM_GRIDS, proposal.num_grids)
        )
        cost = f" ({after} cells instead of {before}; each costs time in the head)"
        parts.append(
            f"To paste into the config{cost * (after != before)}; "
            f"{fit.lost_with_proposal:.1%} of the objects are lost with it, {fit.lost:.1%} without:"
            f"\n\n{to_yaml(proposal)}"
        )
    larger = fit.larger
    if larger is not None:
        parts.append(
            f"Larger images lose fewer objects: {larger.lost:.1%} instead of "
            f"{larger.lost_before:.1%} of those of {larger.num_images} images, at more time and "
            f"memory, with\n\n{to_yaml(larger.proposal, larger.keys)}"
        )
    if min(fit.lost_with_proposal, larger.lost if larger else 1.0) > LOST_LIMIT:
        parts.append(
            "No grid, scale range or image size that was tried loses few enough objects. Cut the "
            "images into tiles, for training and for inference: each shows fewer objects, larger."
        )
    if cfg.INPUT.COPY_PASTE.PROB > 0:
        parts.append("Objects that INPUT.COPY_PASTE adds are not counted; they take cells too.")
    return "\n\n".join(parts)


def _format_verdict(fit: Fit) -> str:
    verb = "fit" if fit.good else "do not fit"
    lines = [
        f"The config's image size, grids and scale ranges {verb}: {fit.lost:.1%} of the objects "
        f"would not be assigned to a cell (at most {LOST_LIMIT:.0%} should be)."
    ]
    lines += [
        f"At a short side of {side} pixels (INPUT.MIN_SIZE_TRAIN) it would be {share:.1%}"
        + (": leave this size out." if share > LOST_LIMIT else ".")
        for side, share in fit.at_sizes.items()
    ]
    return "\n".join(lines)


def _range(pair: Sequence[float]) -> str:
    return f"{pair[0]:g}-{pair[1]:g}"


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.1%}"


def differs(proposal: Proposal, cfg: CfgNode) -> bool:
    """Whether the proposal is another than the config's grids and ranges."""
    solo = cfg.MODEL.SOLO
    ranges = [list(map(float, pair)) for pair in solo.SCALE_RANGES]
    proposed = [list(map(float, pair)) for pair in proposal.scale_ranges]
    return list(solo.NUM_GRIDS) != proposal.num_grids or ranges != proposed


def to_yaml(proposal: Proposal, input_keys: dict[str, Any] | None = None) -> str:
    """The proposal, and keys of INPUT, as a part of a config."""
    lines = ["MODEL:", "  SOLO:", f"    NUM_GRIDS: {proposal.num_grids}"]
    lines.append(f"    SCALE_RANGES: {proposal.scale_ranges}")
    if input_keys:
        lines.append("INPUT:")
        for key, value in input_keys.items():
            *sections, name = key.removeprefix("INPUT.").split(".")
            lines += [f"  {section}:" for section in sections]
            lines.append(f"  {'  ' * len(sections)}{name}: {value}")
    return "\n".join(lines) + "\n"


def to_json(found: Findings) -> dict[str, Any]:
    """All of it, for programs."""
    content: dict[str, Any] = {
        "dataset": found.name,
        "training_fails": found.training_fails,
        "num_images": found.num_images,
        "num_annotations": found.num_annotations,
        "num_crowds": found.num_crowds,
        "num_images_without_objects": found.num_without_objects,
        "problems": {
            severity: {
                kind: [{"where": p.where, "reason": p.reason} for p in problems]
                for kind, problems in group(
                    problem for problem in found.problems if problem.severity == severity
                ).items()
            }
            for severity in HEADINGS
        },
    }
    objects = found.objects
    if objects is not None:
        content["num_inspected_images"] = found.num_inspected
        content["num_objects"] = len(objects.outcomes)
        content["lost_objects"] = {
            name: [objects.names[index] for index in np.flatnonzero(objects.outcomes == outcome)]
            for outcome, name in enumerate(OUTCOMES)
            if outcome != ASSIGNED
        }
    if found.fit is not None:
        content |= _fit_to_json(found.fit)
    return content


def _fit_to_json(fit: Fit) -> dict[str, Any]:
    content: dict[str, Any] = {
        "fits": fit.good,
        "lost_share": fit.lost,
        "lost_share_at_short_sides": fit.at_sizes,
        "proposal": {
            "NUM_GRIDS": fit.proposal.num_grids,
            "SCALE_RANGES": fit.proposal.scale_ranges,
            "lost_share": fit.lost_with_proposal,
        },
    }
    if fit.larger is not None:
        content["larger_images"] = {
            **fit.larger.keys,
            "NUM_GRIDS": fit.larger.proposal.num_grids,
            "SCALE_RANGES": fit.larger.proposal.scale_ranges,
            "lost_share": fit.larger.lost,
            "lost_share_before": fit.larger.lost_before,
            "num_images": fit.larger.num_images,
        }
    return content
