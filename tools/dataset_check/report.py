"""Format the findings of a check as text and JSON."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from solo_d2.config.models import is_panoptic
from solo_d2.data.problems import ERROR, NOTICE, SKIPPED, Problem
from tools.benchmarks.common import markdown_table
from tools.dataset_check.fit import LOST_LIMIT, Fit
from tools.dataset_check.objects import ASSIGNED, OUTCOMES
from tools.dataset_check.proposal import Levels, with_scales
from tools.dataset_check.run import Findings

# Maximum number of examples per kind of problem.
EXAMPLES = 5
HEADINGS = {
    ERROR: "Training would fail because of",
    SKIPPED: "Training would skip",
    NOTICE: "Training would use, but please check",
}
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def format_findings(found: Findings, cfg: CfgNode) -> str:
    """Format problems by kind with counts and examples, objects, proposal."""
    head = (
        f"{found.name}: {found.num_images} images, {found.num_without_objects} of them without "
        f"objects; {found.num_annotations} annotations, {found.num_crowds} of them crowds"
    )
    if found.num_without_objects and found.name in cfg.DATASETS.TRAIN:
        filtered = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        outcome = "skipped" if filtered else "trained on as negatives"
        if is_panoptic(cfg) and not filtered:
            outcome += " and for their stuff labels"
        head += f"\nImages without objects are {outcome} ("
        head += f"DATALOADER.FILTER_EMPTY_ANNOTATIONS {filtered})"
    parts = [head, *_format_problems(found.problems)]
    if not found.problems:
        parts.append("No problems in entries" + (" and files." * bool(found.inspector)))
    if found.objects is not None and len(found.objects):
        parts.append(_format_objects(found))
    if found.fit is not None:
        parts += _format_fit(found, cfg)
    return "\n\n".join(parts)


def format_conclusion(all_findings: Sequence[Findings]) -> str:
    """State in one line what training would do."""
    if any(found.training_fails for found in all_findings):
        return "Training would fail."
    lossy = [
        f"{found.fit.most_lost:.1%} of the objects of {found.name} would not be assigned to a cell"
        + " at the worst size" * (found.fit.most_lost > found.fit.lost)
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
    """Group problems by kind, the most frequent first."""
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _lost_names(found: Findings) -> dict[str, list[str]]:
    assert found.objects is not None
    return {
        name: found.objects["name"][found.objects["outcome"] == outcome].tolist()
        for outcome, name in enumerate(OUTCOMES)
        if outcome != ASSIGNED
    }


def _format_objects(found: Findings) -> str:
    assert found.objects is not None
    total, where = len(found.objects), f"{found.num_inspected} images"
    lines = [f"Lost objects of {total} in {where}, at training size:"]
    for name, lost in _lost_names(found).items():
        if lost:
            examples = ", ".join(lost[:EXAMPLES]) + ", ..." * (len(lost) > EXAMPLES)
            lines.append(f"  {len(lost)} ({len(lost) / total:.1%}) {name}: {examples}")
    if len(lines) == 1:
        lines = [f"All {total} objects of {where} are assigned to cells."]
    _, scales = with_scales(found.objects)
    if len(scales):
        values = np.quantile(scales, _QUANTILES)
        listed = ", ".join(
            f"{share:.0%}: {value:.0f}" for share, value in zip(_QUANTILES, values, strict=True)
        )
        lines.append(f"Quantiles of the scale sqrt(w * h) in pixels: {listed}")
    return "\n".join(lines)


def _format_fit(found: Findings, cfg: CfgNode) -> list[str]:
    fit = found.fit
    assert fit is not None
    current, proposed, solo = Levels.of_config(cfg), fit.levels, cfg.MODEL.SOLO
    levels = zip(
        solo.IN_FEATURES,
        _level_columns(current, found),
        _level_columns(proposed, found, "proposed ", " "),
        strict=True,
    )
    rows = [{"level": feature, **before, **after} for feature, before, after in levels]
    parts = [markdown_table(rows), _format_verdict(fit)]
    if proposed != current:
        before, after = (sum(side * side for side in x.num_grids) for x in (current, proposed))
        cost = f" ({after} cells instead of {before}; more cells cost time in the head)"
        parts.append(
            f"Proposed config{cost * (after != before)}; "
            f"{fit.lost_with_levels:.1%} of the objects are lost with it, {fit.lost:.1%} without:"
            f"\n\n{to_yaml(proposed)}"
        )
    larger = fit.larger
    if larger is not None:
        parts.append(
            f"Larger images lose fewer objects: {larger.lost:.1%} instead of "
            f"{larger.lost_before:.1%} of those of {larger.num_images} images, at more time and "
            f"memory, with\n\n{to_yaml(larger.levels, larger.keys)}"
        )
    if min(fit.lost_with_levels, larger.lost if larger else 1.0) > LOST_LIMIT:
        parts.append(
            "No tested grid, scale range or image size loses few enough objects. Split the images "
            "into tiles for training and inference."
        )
    if cfg.INPUT.COPY_PASTE.PROB > 0:
        parts.append("Objects added by INPUT.COPY_PASTE are not counted; they need cells too.")
    return parts


def _level_columns(
    levels: Levels, found: Findings, prefix: str = "", mark: str = ""
) -> list[dict[str, Any]]:
    """Return columns for each level, marked by `prefix` and `mark`."""
    assert found.objects is not None
    return [
        {
            f"{prefix}range": f"{low:g}-{high:g}",
            f"objects{mark}": count,
            f"grid{mark}": side,
            f"share a cell{mark}": "-" if np.isnan(shared) else f"{shared:.1%}",
        }
        for side, (low, high), (count, shared) in zip(
            levels.num_grids, levels.scale_ranges, levels.counts(found.objects), strict=True
        )
    ]


def _format_verdict(fit: Fit) -> str:
    verb = "fit" if fit.good else "do not fit"
    lines = [
        f"The config's image size, grids and scale ranges {verb}: {fit.lost:.1%} of the objects "
        f"would not be assigned to a cell (at most {LOST_LIMIT:.0%} should be)."
    ]
    lines += [
        f"At a short side of {side} pixels (INPUT.MIN_SIZE_TRAIN) it would be {share:.1%}"
        + (": remove this size." if share > LOST_LIMIT else ".")
        for side, share in fit.at_sizes.items()
    ]
    return "\n".join(lines)


def to_yaml(levels: Levels, input_keys: dict[str, Any] | None = None) -> str:
    """Format the proposal and keys of INPUT as a part of a config."""
    lines = ["MODEL:", "  SOLO:", f"    NUM_GRIDS: {levels.num_grids}"]
    lines.append(f"    SCALE_RANGES: {levels.scale_ranges}")
    if input_keys:
        lines.append("INPUT:")
        for key, value in input_keys.items():
            *sections, name = key.removeprefix("INPUT.").split(".")
            lines += [f"  {section}:" for section in sections]
            lines.append(f"  {'  ' * len(sections)}{name}: {value}")
    return "\n".join(lines) + "\n"


def to_json(found: Findings) -> dict[str, Any]:
    """Return the findings for JSON."""
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
    if found.objects is not None:
        content["num_inspected_images"] = found.num_inspected
        content["num_objects"] = len(found.objects)
        content["lost_objects"] = _lost_names(found)
    fit = found.fit
    if fit is not None:
        content |= {
            "fits": fit.good,
            "lost_share": fit.lost,
            "lost_share_at_short_sides": fit.at_sizes,
            "proposal": {**_levels_to_json(fit.levels), "lost_share": fit.lost_with_levels},
        }
    if fit is not None and fit.larger is not None:
        content["larger_images"] = {
            **fit.larger.keys,
            **_levels_to_json(fit.larger.levels),
            "lost_share": fit.larger.lost,
            "lost_share_before": fit.larger.lost_before,
            "num_images": fit.larger.num_images,
        }
    return content


def _levels_to_json(levels: Levels) -> dict[str, Any]:
    return {"NUM_GRIDS": levels.num_grids, "SCALE_RANGES": levels.scale_ranges}
