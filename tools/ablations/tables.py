"""The ablation tables of the papers, as configs/ablations/tables.json lists them.

A table names the config keys that it varies. Each row names the config of the paper's setting, from
which the values of these keys are taken, so that a row can also be put onto another base config:
another data set, another backbone. Values that make no sense at the scale of the generated data
(grids for images of 800 pixels, say) have a stand-in there, under "quick".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo_d2.config import configs_folder, load_config
from solo_d2.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = configs_folder()
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

TABLE_KEYS = {"title", "source", "varies", "reference", "rows", "quick_base"}
OPTIONAL_TABLE_KEYS = {"note", "heads", "evaluation_only", "quick"}
ROW_KEYS = {"config", "paper"}
OPTIONAL_ROW_KEYS = {"quick", "quick_row"}


@dataclass(frozen=True)
class Row:
    """One setting of a table.

    Attributes:
        name: the row's label in the paper.
        config: file of the paper's setting.
        paper: metric -> what the paper reports, in percent; a metric that it does not give is
            missing.
        quick: key -> value in place of the config's on the small base; None: the base's own value.
        quick_row: the label with these values, "" if `name` is true there too.
    """

    name: str
    config: Path
    paper: Mapping[str, float]
    quick: Mapping[str, Any]
    quick_row: str


@dataclass(frozen=True)
class Table:
    """An ablation table.

    Attributes:
        name: what the command calls it.
        title: a few words.
        source: where it stands in the papers.
        note: what a reader must know, or "".
        heads: the heads for which its rows differ; empty: all.
        varies: the config keys that tell its rows apart.
        reference: name of the row that differences are taken to.
        rows: in the paper's order.
        evaluation_only: whether the rows share one trained model, the reference's.
        quick_base: config of the small data set.
    """

    name: str
    title: str
    source: str
    note: str
    heads: Sequence[str]
    varies: Sequence[str]
    reference: str
    rows: Sequence[Row]
    evaluation_only: bool
    quick_base: Path

    @property
    def reference_row(self) -> Row:
        """The row that differences are taken to."""
        return next(row for row in self.rows if row.name == self.reference)


@dataclass(frozen=True)
class Setting:
    """A row made ready to run.

    Attributes:
        row: the row.
        label: its name, and in brackets what stands in for it.
        config_file: what it is based on.
        overrides: key -> value on top of it.
    """

    row: Row
    label: str
    config_file: Path
    overrides: Mapping[str, Any]


def read_tables(file: Path = CONFIGS / "ablations" / "tables.json") -> dict[str, Table]:
    """Read the tables; configs are named by their path below configs/, without ending.

    Raises:
        ConfigError: the file can't be read, or a table in it does not hold together.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error
    return {name: _read_table(name, entry, file) for name, entry in content.items()}


def _read_table(name: str, entry: dict[str, Any], file: Path) -> Table:
    where = f"{file}: table {name!r}"
    _check_keys(entry, TABLE_KEYS, OPTIONAL_TABLE_KEYS, where)
    configs = file.parents[1]
    rows = tuple(
        _read_row(row, content, entry, configs, f"{where}, row {row!r}")
        for row, content in entry["rows"].items()
    )
    if entry["reference"] not in entry["rows"]:
        raise ConfigError(f"{where} has no row {entry['reference']!r}, its reference")
    return Table(
        name=name,
        title=entry["title"],
        source=entry["source"],
        note=entry.get("note", ""),
        heads=tuple(entry.get("heads", ())),
        varies=tuple(entry["varies"]),
        reference=entry["reference"],
        rows=rows,
        evaluation_only=entry.get("evaluation_only", False),
        quick_base=_config_file(configs, entry["quick_base"], where),
    )


def _read_row(
    name: str, content: dict[str, Any], table: dict[str, Any], configs: Path, where: str
) -> Row:
    _check_keys(content, ROW_KEYS, OPTIONAL_ROW_KEYS, where)
    quick = {**table.get("quick", {}), **content.get("quick", {})}
    for kind, given, known in (
        ("metric", content["paper"], METRICS),
        ("quick value of a key that the table does not vary", quick, table["varies"]),
    ):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(f"{where} has an unknown {kind}: {', '.join(unknown)}")
    return Row(
        name=name,
        config=_config_file(configs, content["config"], where),
        paper=content["paper"],
        quick=quick,
        quick_row=content.get("quick_row", ""),
    )


def _check_keys(entry: Mapping[str, Any], needed: set[str], optional: set[str], where: str) -> None:
    missing, unknown = needed - set(entry), set(entry) - needed - optional
    if missing or unknown:
        raise ConfigError(
            f"{where} must have {', '.join(sorted(needed))}, and may have "
            f"{', '.join(sorted(optional))}; it has {', '.join(sorted(entry))}"
        )


def _config_file(configs: Path, name: str, where: str) -> Path:
    file = configs / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"{where}: there is no {file}")
    return file


def settings(table: Table, *, base: Path | None = None, quick: bool = False) -> list[Setting]:
    """Make the rows of a table ready to run.

    Args:
        table: the table.
        base: the config that the rows are put onto; None: each row's own config, the paper's
            setting.
        quick: whether the stand-ins for small data replace the paper's values, on `base` or the
            table's own small base.

    Raises:
        ConfigError: a config can't be read, or the rows would not differ with the base's head.
    """
    if quick:
        base = base or table.quick_base
    if base is None:
        return [Setting(row, row.name, row.config, {}) for row in table.rows]
    _check_head(table, base)
    return [_on_base(table, row, base, quick) for row in table.rows]


def _on_base(table: Table, row: Row, base: Path, quick: bool) -> Setting:
    values = varied_values(table, row)
    label = row.name
    if quick:
        values.update(row.quick)
        label += f" ({row.quick_row})" if row.quick_row else ""
    overrides = {key: value for key, value in values.items() if value is not None}
    return Setting(row, label, base, overrides)


def _check_head(table: Table, base: Path) -> None:
    head = load_config(str(base)).MODEL.SOLO.HEAD.NAME
    if table.heads and head not in table.heads:
        raise ConfigError(
            f"{base} has {head}, for which the rows of table {table.name!r} do not differ: use a "
            f"config with {' or '.join(table.heads)}"
        )


def varied_values(table: Table, row: Row) -> dict[str, Any]:
    """The values that a row's config gives to the keys that its table varies."""
    cfg = load_config(str(row.config))
    return {key: get_value(cfg, key) for key in table.varies}


def get_value(cfg: Any, key: str) -> Any:
    """The value of a dotted key of a config.

    Raises:
        ConfigError: there is no such key.
    """
    for part in key.split("."):
        if part not in cfg:
            raise ConfigError(f"There is no config key {key}")
        cfg = cfg[part]
    return cfg
