"""The ablation tables: what they claim about the configs, and each row as a model that trains."""

import functools

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from solo_d2.config import load_config
from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import assert_all_learn, image, losses_of
from tools.ablations.tables import (
    CONFIGS,
    METRICS,
    read_tables,
    settings,
    varied_values,
)

TABLES = read_tables()
ROWS = [
    pytest.param(table, row, id=f"{table.name}-{row.name}")
    for table in TABLES.values()
    for row in table.rows
]

# Few classes, and a ResNet of few channels, which no table varies.
NARROW = [
    *("MODEL.SOLO.NUM_CLASSES", 5, "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
]

# Read once, since a config takes long to read: nothing changes what they return.
load = functools.cache(load_config)
quick_settings = functools.cache(lambda name: settings(TABLES[name], quick=True))


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(a, b):
    a, b = dict(leaves(a)), dict(leaves(b))
    return {key for key in a if a[key] != b[key]}


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_rows_differ_from_their_reference_in_the_claimed_keys_alone(table, row):
    (reference,) = (each for each in table.rows if each.name == table.reference)
    found = differences(load(str(row.config)), load(str(reference.config)))
    assert found <= set(table.varies)
    assert bool(found) == (row != reference)


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_tables_are_consistent(table):
    values = [varied_values(table, row) for row in table.rows]
    for key in table.varies:
        assert len({str(of_row[key]) for of_row in values}) > 1, key
    assert table.quick_base.is_file()
    for row in table.rows:
        assert row.config.is_file()
        assert set(row.paper) <= set(METRICS)
        assert set(row.quick) <= set(table.varies)
    small = quick_settings(table.name)
    assert len({str(row.overrides) for row in small}) == len({r.label for r in small}) == len(small)
    assert all(set(row.overrides) <= set(table.varies) for row in small)


def test_configs_of_the_folder_and_of_the_tables_are_the_same():
    used = {row.config for table in TABLES.values() for row in table.rows}
    assert {c for c in used if c.parent.name == "ablations"} == set(
        (CONFIGS / "ablations").glob("*.yaml")
    )


@pytest.mark.parametrize(
    ("table", "values"),
    {
        "grid": [27.2, 29.0, 28.6, 35.8],
        "coordconv": [32.2, 35.8, 35.7, 35.8],
        "loss": [30.0, 31.6, 35.8],
        "kernel": [37.4, 37.4, 37.4, 37.8, 37.7],
        "coord": [36.3, 36.3, 37.1, 37.8],
        "nms": [36.3, 36.5, 36.2, 36.6],
        "mask_feature": [37.3, 37.8],
        "schedule": [34.8, 37.8],
    }.items(),
)
def test_figures_of_the_papers(table, values):
    assert [row.paper["AP"] for row in TABLES[table].rows if row.paper] == values


@pytest.mark.parametrize(
    ("table", "row", "expected"),
    [
        ("coord", "feature", [False, True]),
        ("coord", "kernel", [True, False]),
        ("kernel", "3x3x64", [3, 64]),
        ("loss", "BCE", ["bce", 10.0]),
        ("loss", "focal", ["focal", 20.0]),
        ("coordconv", "0", [0]),
        ("alignment", "region grid", ["region_grid"]),
        ("grid", "24", [["res3", "res4", "res5"], ["p3"], [8], [24], [[1, 2048]]]),
        ("nms", "Fast NMS", ["fast", "gaussian"]),
    ],
)
def test_values_of_rows(table, row, expected):
    table = TABLES[table]
    row = next(r for r in table.rows if r.name == row)
    assert list(varied_values(table, row).values()) == expected


def test_rows_of_the_papers_build():
    """Full size, on torch's "meta" device, where tensors have no values."""
    built = set()
    for config in sorted({row.config for table in TABLES.values() for row in table.rows}):
        if config.parent.name == "ablations":  # tests/config/test_configs.py builds the others
            cfg = load_config(str(config), ["MODEL.DEVICE", "meta", "MODEL.SOLO.NUM_CLASSES", 80])
            if cfg.MODEL.dump() not in built:
                with torch.device("meta"):  # from the start, or weights are drawn first
                    assert build_model(cfg).device.type == "meta", config
            built.add(cfg.MODEL.dump())
    assert len(built) > 10


def test_rows_on_small_data_train_and_predict():
    """Rows of the same values, as the references of most tables, are one model."""
    models = {}
    for setting in (x for name in TABLES for x in quick_settings(name)):
        overrides = [x for pair in setting.overrides.items() for x in pair]
        cfg = load_config(str(setting.config_file), [*overrides, *NARROW])
        models.setdefault(cfg.MODEL.dump(), (cfg, setting.label))
    assert len(models) > 30
    for cfg, label in models.values():
        torch.manual_seed(0)
        model = build_model(cfg)
        batch = [image(64, 64), image(64, 64, num=0)]
        assert_all_learn(model, losses_of(model, batch)[0])
        with torch.no_grad():
            result = model.eval()(batch[:1])[0]["instances"]
        assert result.pred_masks.shape[1:] == (64, 64), label


def test_a_row_on_a_config_of_ones_own_has_the_values_of_the_paper():
    base = CONFIGS / "quickstart" / "solov2_shapes.yaml"
    rows = settings(TABLES["kernel"], base=base)
    assert [row.config_file for row in rows] == [base] * 5
    widths = [row.overrides["MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS"] for row in rows]
    assert widths == [64, 64, 128, 256, 512]
    assert [row.label for row in rows] == ["3x3x64", "1x1x64", "1x1x128", "1x1x256", "1x1x512"]


def test_small_data_keeps_what_has_no_meaning_there():
    rows = {s.row.name: s for s in quick_settings("schedule")}
    assert rows["1x"].overrides == {"SOLVER.MAX_ITER": 700}
    assert rows["1x"].label == "1x (700 iterations)"
    rows = {s.row.name: s for s in quick_settings("grid")}
    assert rows["pyramid"].overrides == {}
    assert rows["pyramid"].label == "pyramid"
    assert rows["12"].overrides["MODEL.SOLO.IN_FEATURES"] == ["p3"]
    assert rows["12"].overrides["MODEL.SOLO.NUM_GRIDS"] == [6]


def test_a_head_without_the_varied_part_is_refused():
    base = CONFIGS / "quickstart" / "solo_shapes.yaml"
    with pytest.raises(ConfigError, match=r"solo_shapes.yaml has SOLOHead.*use .* SOLOv2Head"):
        settings(TABLES["coord"], base=base)
