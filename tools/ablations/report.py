"""An ablation table with the paper's metrics and ours side by side."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.ablations.runs import Outcome, finished, null
from tools.ablations.tables import Setting, Table
from tools.benchmarks.common import markdown_table


@dataclass(frozen=True)
class Line:
    """A row of the table; percent, NaN where there is no figure.

    Attributes:
        label: of the row.
        paper: what the paper reports.
        values: ours, one for each seed that is finished.
        planned: seeds.
    """

    label: str
    paper: float
    values: tuple[float, ...]
    planned: int

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds (of a sample: n - 1); NaN for less than two."""
        if len(self.values) < 2 or any(map(math.isnan, self.values)):
            return math.nan
        return statistics.stdev(self.values)


def make_lines(
    settings: Sequence[Setting], outcomes: Sequence[Outcome], metric: str = "AP"
) -> list[Line]:
    """Gather the metrics of each row.

    Args:
        settings: the rows.
        outcomes: of their runs.
        metric: name of a mask metric, such as "AP50".
    """
    return [
        Line(
            label=setting.label,
            paper=setting.row.paper.get(metric, math.nan),
            values=tuple(
                result.metrics.get(f"segm/{metric}", math.nan)
                for result in finished(outcomes, setting.row.name)
            ),
            planned=sum(outcome.run.row == setting.row.name for outcome in outcomes),
        )
        for setting in settings
    ]


def format_table(lines: Sequence[Line], reference: int, metric: str = "AP") -> str:
    """The table in Markdown.

    Args:
        lines: its rows.
        reference: index of the one that differences are taken to.
        metric: the one that is shown.
    """
    base = lines[reference]
    return markdown_table(
        [
            {
                "": line.label,
                f"paper {metric}": _figure(line.paper),
                "to reference": _difference(line.paper, base.paper, line is base),
                f"our {metric}": _figure(line.mean),
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
    """The whole Markdown page.

    Args:
        table: the ablation.
        text: the table, see `format_table`.
        outcomes: of the runs; the failed ones are listed.
        conditions: the settings of our runs.
    """
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
    """The same as data, with all metrics of all runs; null where there is no figure.

    Args:
        table: the ablation.
        settings: its rows.
        lines: their metrics, see `make_lines`.
        outcomes: of the runs.
        conditions: the settings of our runs.
    """
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
