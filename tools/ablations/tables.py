"""The ablation tables of the papers, from configs/ablations/tables.json.

A table names the config keys that it varies. The config of each row, the paper's setting, gives
their values, so that a row can be applied to another base config. "quick" values replace those that
do not suit the generated data, such as grids for images of 800 pixels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from solo_d2.config import configs_folder, load_config
from solo_d2.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = configs_folder()
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Row:
    """One setting of a table."""

    name: str  # the row's label in the paper
    config: Path  # file of the paper's setting
    paper: Mapping[str, float]  # metrics that the paper reports, in percent
    # Values that replace the config's on the small base; None: the base's own value.
    quick: Mapping[str, Any]
    quick_row: str = ""  # label with these values, if `name` does not apply


@dataclass(frozen=True)
class Table:
    """An ablation table."""

    name: str  # on the command line
    title: str
    source: str  # paper and table
    varies: Sequence[str]  # config keys that differ between rows
    reference: str  # name of the row that differences refer to
    rows: Sequence[Row]  # in the paper's order
    quick_base: Path  # config of the small data set
    note: str = ""  # printed below the table
    heads: Sequence[str] = ()  # heads for which the rows differ; empty: all
    evaluation_only: bool = False  # whether the rows share the model of the reference


@dataclass(frozen=True)
class Setting:
    """A row prepared to run."""

    row: Row
    label: str  # name, with the quick value in brackets
    config_file: Path  # base config
    overrides: Mapping[str, Any]


def read_tables(file: Path = CONFIGS / "ablations" / "tables.json") -> dict[str, Table]:
    """Read the tables; configs are named by their path below configs/, without ending."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return {name: _read_table(name, entry, file.parents[1]) for name, entry in content.items()}


def _read_table(name: str, entry: dict[str, Any], configs: Path) -> Table:
    quick = entry.pop("quick", {})
    rows = [
        Row(
            name=row,
            config=configs / f"{content.pop('config')}.yaml",
            quick={**quick, **content.pop("quick", {})},
            **content,
        )
        for row, content in entry.pop("rows").items()
    ]
    quick_base = configs / f"{entry.pop('quick_base')}.yaml"
    return Table(name=name, rows=rows, quick_base=quick_base, **entry)


def settings(table: Table, *, base: Path | None = None, quick: bool = False) -> list[Setting]:
    """Prepare the rows of a table.

    Args:
        table: the table.
        base: config that the rows modify; None: each row's own, the paper's setting.
        quick: whether the values for small data replace the paper's, on `base` or the table's own
            small base.

    Raises:
        ConfigError: a config cannot be read, or the rows do not differ with the base's head.
    """
    if quick:
        base = base or table.quick_base
    if base is None:
        return [Setting(row, row.name, row.config, {}) for row in table.rows]
    head = load_config(str(base)).MODEL.SOLO.HEAD.NAME
    if table.heads and head not in table.heads:
        raise ConfigError(
            f"{base} has {head}, for which the rows of table {table.name!r} do not differ: use a "
            f"config with {' or '.join(table.heads)}"
        )
    found = []
    for row in table.rows:
        values = {**varied_values(table, row), **(row.quick if quick else {})}
        label = f"{row.name} ({row.quick_row})" if quick and row.quick_row else row.name
        overrides = {key: value for key, value in values.items() if value is not None}
        found.append(Setting(row, label, base, overrides))
    return found


def varied_values(table: Table, row: Row) -> dict[str, Any]:
    """Return the values of a row's config for the keys that its table varies."""
    cfg = load_config(str(row.config))
    return {key: reduce(getitem, key.split("."), cfg) for key in table.varies}
