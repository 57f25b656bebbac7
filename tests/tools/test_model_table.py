"""tools/model_table.py and tools/plot_published.py: published results and sizes of all models."""

import json
import re
from pathlib import Path
from unittest import mock

import pytest

from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import tiny_config
from tools import model_table, plot_published
from tools.model_zoo import tables
from tools.model_zoo.published import read_published

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


BACKBONES = {
    "R34": ["RESNETS.DEPTH", 34],
    "R50-DCN": ["RESNETS.DEPTH", 50, "RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]],
    "X101-64x4d-DCNv2": [
        *("RESNETS.DEPTH", 101, "RESNETS.NUM_GROUPS", 64, "RESNETS.WIDTH_PER_GROUP", 4),
        *("RESNETS.DEFORM_ON_PER_STAGE", [False] * 3 + [True], "RESNETS.DEFORM_MODULATED", True),
    ],
    "Swin-T": ["BACKBONE.NAME", "build_solo_swin_fpn_backbone"],
    "Swin": ["BACKBONE.NAME", "build_solo_swin_fpn_backbone", "SWIN.EMBED_DIM", 48],
    "ViT-B": ["BACKBONE.NAME", "build_solo_vit_backbone"],
    "RegNetX": ["BACKBONE.NAME", "build_solo_regnet_fpn_backbone"],
    "RegNetY": ["BACKBONE.NAME", "build_solo_regnet_fpn_backbone", "REGNET.SE_RATIO", 0.25],
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_names(name):
    cfg = tiny_config()
    cfg.MODEL.merge_from_list(BACKBONES[name])
    assert tables.backbone_name(cfg) == name


@pytest.mark.parametrize(
    ("iterations", "batch", "text"),
    [
        *((90_000, 16, "1x"), (270_000, 16, "3x"), (527_697, 16, "6x"), (220_000, 16, "2.5x")),
        *((180_000, 8, "1x"), (24_000, 8, "24k of 8")),
    ],
)
def test_schedule_is_in_terms_of_cocos_unless_it_is_shorter(iterations, batch, text):
    cfg = tiny_config()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = iterations, batch
    assert tables.schedule(cfg) == text


TINY = """
_BASE_: "{base}"
MODEL:
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  SOLO:
    NUM_CLASSES: 80
    HEAD: {{NUM_CONVS: 1, CONV_DIM: 32}}
"""
MARKS = "<!-- {0}:begin -->\nold\n<!-- {0}:end -->"
RESULTS = {
    "sources": {"paper": "a paper", "port": "a port"},
    "models": {
        "coco/b_R18_3x": [
            {"source": "paper", "split": "COCO val2017", "recipe": "authors",
             "metrics": {"AP": 30, "AP50": 50.5, "ms": 20}},
            {"source": "port", "split": "COCO test-dev", "recipe": "port", "metrics": {"AP": 31}},
        ],
    },
    "others": {"a rival": [{"source": "paper", "split": "COCO test-dev", "metrics": {"AP": 29}}]},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two configs that differ in training alone, their results, and two READMEs."""
    root = tmp_path / "configs"
    (root / "coco").mkdir(parents=True)
    for name, extra in (("a", ""), ("b_R18_3x", "SOLVER: {MAX_ITER: 270000, STEPS: '(1,)'}")):
        text = TINY.format(base=CONFIGS / "base/solov2_coco.yaml") + extra
        (root / f"coco/{name}.yaml").write_text(text)
    (root / "published.json").write_text(json.dumps(RESULTS))
    (root / "README.md").write_text(
        f"before\n{MARKS.format('models')}\nbetween\n{MARKS.format('results')}\nafter\n"
    )
    (tmp_path / "README.md").write_text(f"one\n{MARKS.format('family')}\ntwo\n")
    return root


def rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]


def test_tables_are_rewritten_in_place(folder, monkeypatch, capsys):
    measure = mock.Mock(side_effect=tables.measure)
    monkeypatch.setattr(tables, "measure", measure)
    assert model_table.main(["--configs", str(folder)]) == 0
    assert measure.call_count == 1  # both are one model
    assert capsys.readouterr().out.split() == ["coco/a", "coco/b_R18_3x"]
    text = (folder / "README.md").read_text()
    first, last = text.split("between")
    a, b = rows(first)[1:]
    assert a[:5] == ["[`coco/a`](coco/a.yaml)", "R18", "1x", "800", "-"]
    assert b[:5] == [
        "[`coco/b_R18_3x`](coco/b_R18_3x.yaml)", "R18", "3x", "800", "30.0, test-dev 31.0"
    ]  # fmt: skip
    assert a[5:] == b[5:]
    assert re.fullmatch(r"\d+\.\d M", a[5])
    assert re.fullmatch(r"\d+ G", a[6])
    assert a[7] == "800x1088"
    assert rows(last)[:2] == [
        ["model", "recipe", "AP", "AP50", "ms", "source"],
        ["[`coco/b_R18_3x`](coco/b_R18_3x.yaml)", "authors", "30.0", "50.5", "20.0", "[^paper]"],
    ]
    assert rows(last)[-1] == ["a rival", "-", "29.0", "[^paper]"]
    assert "[^port]: a port" in last
    assert "old" not in text + (folder.parent / "README.md").read_text()
    # Once more changes nothing, and nothing is left behind.

    assert model_table.main(["--configs", str(folder)]) == 0
    assert (folder / "README.md").read_text() == text
    assert {path.name for path in folder.iterdir()} == {"README.md", "coco", "published.json"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x["models"].update({"coco/c": []}), "not exist: coco/c"),
        (lambda x: x["others"]["a rival"][0].update(source="rumour"), "rumour"),
        (lambda x: x["others"]["a rival"][0].update(metrics={"AP": "29"}), "a rival"),
        (lambda x: x["others"]["a rival"][0].pop("split"), "split"),
        (lambda x: x.pop("sources"), "sources"),
    ],
)
def test_bad_results_are_refused(folder, capsys, change, words):
    results = json.loads(json.dumps(RESULTS))
    change(results)
    (folder / "published.json").write_text(json.dumps(results))
    before = (folder / "README.md").read_text()
    assert model_table.main(["--configs", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("model_table: ")
    assert "published.json" in line
    assert words in line
    assert (folder / "README.md").read_text() == before


@pytest.mark.parametrize("text", ["", "{begin}", "{end}\n{begin}", "{begin}{end}{begin}{end}"])
def test_wrong_marks_are_refused(folder, text):
    text = text.format(begin="<!-- models:begin -->", end="<!-- models:end -->")
    (folder / "README.md").write_text(text + MARKS.format("results"))
    with pytest.raises(ConfigError, match=r"README\.md"):
        tables.update_tables(folder, lambda name: pytest.fail("measured first"))


def test_every_published_figure_has_a_source():
    """If this fails, run tools/model_table.py."""
    published = read_published(CONFIGS)
    text = (CONFIGS / "README.md").read_text()
    listed = re.findall(r"^\| \[`(.*?)`\]", text.split("<!-- models:end -->")[0], re.MULTILINE)
    assert listed == list(tables.find_configs(CONFIGS))
    for name, row in zip(listed, rows(text.split("<!-- models:end -->")[0])[1:], strict=True):
        assert row[4] == tables.headline(published.models.get(name, []))
    results = {"results": tables.results_text(published)}
    assert tables.replace_tables(CONFIGS / "README.md", results) == text
    family = {"family": tables.markdown_table(tables.family_rows(published))}
    assert tables.replace_tables(ROOT / "README.md", family) == (ROOT / "README.md").read_text()


def test_published_numbers_of_facts():
    """A few by hand, so that a slip in the file shows."""
    published = read_published(CONFIGS)
    for config, value in {
        "solo_R50_1x": 32.9, "solo_R101_3x": 37.1, "decoupled_solo_R50_3x": 36.4,
        "solov2_R50_3x": 37.5, "solov2_R101_dcn_3x": 41.4, "solov2_X101_dcn_3x": 42.4,
        "solov2_light_448_R18_3x": 29.6, "solo_512_R50_6x": 34.2,
    }.items():  # fmt: skip
        assert published.find(f"published/{config}") == value
    assert published.find("coco/solov2_R50_3x") == 37.6
    dev = {"solov2_R50_3x": 38.8, "solov2_R101_dcn_3x": 41.7, "decoupled_solo_R101_6x": 38.4}
    for config, value in dev.items():
        assert published.find(f"published/{config}", split=tables.TEST_DEV) == value


def test_speed_is_plotted_against_accuracy(folder, tmp_path, capsys):
    picture = tmp_path / "plot.png"
    assert plot_published.main(["--configs", str(folder), "--output", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert plot_published.speeds(read_published(folder)) == {"b": {"R18": (20, 30)}}
    points = plot_published.speeds(read_published(CONFIGS))
    assert points["SOLOv2"]["R50"] == (54, 37.5)
    assert points["SOLOv2 of AdelaiDet"]["R50"] == (47, 37.6)
    assert points["SOLO"]["512 R50"] == (pytest.approx(1000 / 22.5), 34.2)
