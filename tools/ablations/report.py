"""Format an ablation table with the metrics of the paper and of our runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.ablations.runs import Outcome, null
from tools.ablations.tables import Setting, Table
from tools.benchmarks.common import markdown_table


@dataclass(frozen=True)
class Line:
    """A row of the table; percent, NaN for missing metrics."""

    label: str
    paper: float
    values: tuple[float, ...]  # ours, one for each seed that is finished
    planned: int  # seeds

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the seeds; NaN for fewer than two."""
        if len(self.values) < 2 or any(map(math.isnan, self.values)):
            return math.nan
        return statistics.stdev(self.values)


def make_lines(settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> list[Line]:
    """Collect the mask AP of each row from the outcomes of its runs."""
    lines = []
    for setting in settings:
        of_row = [outcome for outcome in outcomes if outcome.run.row == setting.row.name]
        values = (o.result.metrics["segm/AP"] for o in of_row if o.result)
        paper = setting.row.paper.get("AP", math.nan)
        lines.append(Line(setting.label, paper, tuple(values), len(of_row)))
    return lines


def format_table(lines: Sequence[Line], reference: int) -> str:
    """Format the table in Markdown, with differences to the line of index `reference`."""
    base = lines[reference]
    return markdown_table(
        [
            {
                "": line.label,
                "paper AP": _figure(line.paper),
                "to reference": _difference(line.paper, base.paper, line is base),
                "our AP": _figure(line.mean),
                "±": _figure(line.deviation),
                "our difference": _difference(line.mean, base.mean, line is base),
                "seeds": f"{len(line.values)}/{line.planned}",
            }
            for line in lines
        ]
    )


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _difference(value: float, base: float, is_base: bool) -> str:
    if is_base:
        return "reference"
    if math.isnan(value - base):
        return "-"
    return f"{round(value - base, 1) + 0.0:+.1f}"  # -0.0 becomes 0.0


def format_report(
    table: Table, text: str, outcomes: Sequence[Outcome], conditions: Sequence[str]
) -> str:
    """Format the Markdown page: table, settings of our runs, failures."""
    parts = [f"# {table.title} ({table.source})", "; ".join(conditions), text]
    if table.note:
        parts.append(table.note)
    failed = [f"- {o.run.label}: {o.error}" for o in outcomes if o.result is None]
    if failed:
        parts.append("\n".join(["Failed:", *failed]))
    return "\n\n".join(parts) + "\n"


def report_content(
    table: Table,
    settings: Sequence[Setting],
    lines: Sequence[Line],
    outcomes: Sequence[Outcome],
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report for JSON, with all metrics of all runs."""
    rows = [
        {
            "row": setting.row.name,
            "label": line.label,
            "overrides": dict(setting.overrides),
            "paper": dict(setting.row.paper),
            "mean": null(line.mean),
            "deviation": null(line.deviation),
            "runs": [_run_content(o) for o in outcomes if o.run.row == setting.row.name],
        }
        for setting, line in zip(settings, lines, strict=True)
    ]
    head = {"table": table.name, "title": table.title, "source": table.source}
    return {**head, **conditions, "reference": table.reference, "rows": rows}


def _run_content(outcome: Outcome) -> dict[str, Any]:
    content: dict[str, Any] = {"seed": outcome.run.seed, "folder": str(outcome.run.folder)}
    if outcome.result is None:
        return {**content, "error": outcome.error}
    metrics = {key: null(value) for key, value in outcome.result.metrics.items()}
    return {**content, "metrics": metrics, "seconds": outcome.result.seconds}
