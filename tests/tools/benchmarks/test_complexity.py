"""Multiply-adds are those counted by hand, and the table is rewritten in place."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.config import CfgNode  # noqa: E402
from detectron2.data.transforms import ResizeShortestEdge  # noqa: E402
from torch import nn  # noqa: E402

from solo_d2.modeling.layers import DeformConv2d  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.modeling.tiny import tiny_config, tiny_model  # noqa: E402
from tools.benchmarks import complexity  # noqa: E402

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"


def run_command(folder):
    """tools/model_table.py, in this process; `tools` is a name that other packages take, too."""
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "tools/model_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(["--configs", str(folder)])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_convolution_by_hand(device):
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2).to(device)
    x = torch.empty(2, 6, 10, 12, device=device)
    # 2 images of 5x6 outputs in 8 channels, each of 3 inputs at 9 positions.
    assert complexity.count_multiply_adds(conv, x) == 2 * 5 * 6 * 8 * 3 * 9


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("modulated", [False, True])
def test_one_deformable_convolution_by_hand(device, modulated):
    conv = DeformConv2d(6, 8, 3, stride=2, padding=1, groups=2, modulated=modulated).to(device)
    x = torch.zeros(2, 6, 10, 12, device=device)
    offsets = 2 * 5 * 6 * (27 if modulated else 18) * 6 * 9
    assert complexity.count_multiply_adds(conv, x) == 2 * 5 * 6 * 8 * 3 * 9 + offsets


def test_a_model_is_the_sum_of_its_convolutions():
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 75  # 75x100, padded to 96x128
    counted = 0

    def count(module, _inputs, output):
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    model = tiny_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.head(model.backbone(torch.zeros(1, 3, 96, 128)))
    measured = complexity.measure(cfg)
    assert measured.multiply_adds == counted > 0
    assert measured.parameters == sum(p.numel() for p in model.parameters())
    assert measured.input_size == (96, 128)
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(("short", "longest"), [(800, 1333), (448, 768), (800, 1000), (333, 444)])
def test_input_size_is_detectron2s(short, longest):
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, longest
    expected = ResizeShortestEdge.get_output_shape(480, 640, short, longest)
    assert complexity.input_size(cfg) == expected


def test_input_size_without_resizing():
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert complexity.input_size(cfg) == (480, 640)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"RESNETS.DEPTH": 34}, "R34"),
        (
            {"RESNETS.DEPTH": 50, "RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]},
            "R50-DCN",
        ),
        (
            {
                "RESNETS.DEPTH": 101,
                "RESNETS.NUM_GROUPS": 64,
                "RESNETS.WIDTH_PER_GROUP": 4,
                "RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True],
                "RESNETS.DEFORM_MODULATED": True,
            },
            "X101-64x4d-DCNv2",
        ),
        ({"BACKBONE.NAME": "build_solo_swin_fpn_backbone"}, "Swin-T"),
        ({"BACKBONE.NAME": "build_solo_swin_fpn_backbone", "SWIN.EMBED_DIM": 48}, "Swin"),
        ({"BACKBONE.NAME": "build_solo_vit_backbone"}, "ViT-B"),
        ({"BACKBONE.NAME": "build_solo_regnet_fpn_backbone"}, "RegNetX"),
        ({"BACKBONE.NAME": "build_solo_regnet_fpn_backbone", "REGNET.SE_RATIO": 0.25}, "RegNetY"),
    ],
)
def test_backbone_names(overrides, name):
    cfg = tiny_config()
    cfg.merge_from_list([x for key, value in overrides.items() for x in (f"MODEL.{key}", value)])
    assert complexity.backbone_name(cfg) == name


@pytest.mark.parametrize(
    ("iterations", "batch", "text"),
    [(90_000, 16, "1x"), (270_000, 16, "3x"), (180_000, 8, "1x"), (24_000, 8, "24k of 8")],
)
def test_schedule_is_in_terms_of_cocos_unless_it_is_shorter(iterations, batch, text):
    cfg = tiny_config()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = iterations, batch
    assert complexity.schedule(cfg) == text


TINY = """
_BASE_: "{base}"
MODEL:
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  SOLO:
    NUM_CLASSES: 80
    HEAD: {{NUM_CONVS: 1, CONV_DIM: 32}}
"""


@pytest.fixture
def folder(tmp_path):
    """Two configs that differ in training alone, their figures, and a README."""
    for name, extra in (("a", ""), ("b", "SOLVER: {MAX_ITER: 270000, STEPS: '(1,)'}")):
        text = TINY.format(base=CONFIGS / "base/solov2_coco.yaml") + extra
        (tmp_path / "coco").mkdir(exist_ok=True)
        (tmp_path / f"coco/{name}.yaml").write_text(text)
    figures = {
        "coco/b": {"published": {"value": 30, "split": "test-dev", "source": "a paper"}},
        "coco/a": {"ours": "29.9"},
    }
    (tmp_path / "published.json").write_text(json.dumps(figures))
    markers = f"{complexity.BEGIN}\nold\n{complexity.END}"
    (tmp_path / "README.md").write_text(f"before\n{markers}\nafter\n")
    return tmp_path


def test_table_is_rewritten_in_place(folder, capsys):
    assert run_command(folder) == 0
    assert capsys.readouterr().out.split() == ["coco/a", "coco/b"]
    text = (folder / "README.md").read_text()
    assert text.startswith(f"before\n{complexity.BEGIN}\n| config")
    assert text.endswith(f"\n\n[^1]: a paper\n{complexity.END}\nafter\n")
    assert "old" not in text
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| [`")
    ]
    assert [row[:6] for row in cells] == [
        ["[`coco/a`](coco/a.yaml)", "R18", "1x", "800", "-", "29.9"],
        ["[`coco/b`](coco/b.yaml)", "R18", "3x", "800", "30.0 (test-dev)[^1]", "-"],
    ]
    assert cells[0][6:] == cells[1][6:]
    assert re.fullmatch(r"\d+\.\d M", cells[0][6])
    assert re.fullmatch(r"\d+ G", cells[0][7])
    assert cells[0][8] == "800x1088"
    # Once more changes nothing, and nothing is left behind.
    assert run_command(folder) == 0
    assert (folder / "README.md").read_text() == text
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "coco", "published.json"]


def test_same_models_are_measured_once(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(
        complexity,
        "measure",
        lambda cfg: calls.append(cfg) or complexity.Complexity(1, 2, (3, 4)),
    )
    complexity.update_table(folder, lambda name: None)
    assert len(calls) == 1
    assert isinstance(calls[0], CfgNode)


def test_unknown_configs_are_refused(folder, capsys):
    (folder / "published.json").write_text(json.dumps({"coco/c": {}}))
    before = (folder / "README.md").read_text()
    assert run_command(folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("model_table: ")
    assert "coco/c" in line
    assert (folder / "README.md").read_text() == before


@pytest.mark.parametrize("text", ["", "{begin}", "{end}\n{begin}", "{begin}{end}{begin}{end}"])
def test_wrong_markers_are_refused(folder, text):
    text = text.format(begin=complexity.BEGIN, end=complexity.END)
    (folder / "README.md").write_text(text)
    with pytest.raises(ConfigError, match=r"README\.md"):
        complexity.update_table(folder, lambda name: pytest.fail("measured first"))


def test_the_table_lists_every_config():
    """If this fails, run tools/model_table.py."""
    published = json.loads((CONFIGS / "published.json").read_text())
    text = (CONFIGS / "README.md").read_text()
    names = re.findall(r"^\| \[`(.*?)`\]", text, re.MULTILINE)
    assert names == list(complexity.find_configs(CONFIGS))
    for name, entry in published.items():
        if "published" in entry:
            line = re.search(rf"^\| \[`{name}`\].*$", text, re.MULTILINE)[0]
            assert f"{entry['published']['value']:.1f}" in line
