"""Update the tables of configs/README.md and README.md: model sizes and published results."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from solo_d2.config import load_config
from solo_d2.data import resolve_num_classes
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import save_text
from tools.benchmarks.common import markdown_table, size_text
from tools.benchmarks.complexity import Complexity, input_size, measure
from tools.model_zoo.published import Published, Result, read_published

# Folders of configs/ in the table, in this order.
FOLDERS = ("coco", "published", "lvis", "cityscapes", "panoptic")
# 12 epochs of the COCO train2017 images with objects.
IMAGES_OF_1X = 12 * 117_266
TEST_DEV = "COCO test-dev"
# Order of the columns; other metrics follow.
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "box AP", "ms", "fps", "GB")

SWINS = {
    (96, (2, 2, 6, 2)): "Swin-T",
    (96, (2, 2, 18, 2)): "Swin-S",
    (128, (2, 2, 18, 2)): "Swin-B",
    (192, (2, 2, 18, 2)): "Swin-L",
}
VITS = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}


def update_tables(root: Path, progress: Callable[[str], None]) -> None:
    """Measure all configs and rewrite the tables between their marks.

    Args:
        root: folder of the configs, with published.json and a README.md that has the tables
            "models" and "results". A README.md beside the folder may have "family".
        progress: receives the name of each config.

    Raises ConfigError before anything is written.
    """
    published = read_published(root)
    readme, outer = root / "README.md", root.absolute().parent / "README.md"
    files: dict[Path, tuple[str, ...]] = {readme: ("models", "results")}
    if outer.is_file() and _mark("family", "begin") in outer.read_text():
        files[outer] = ("family",)
    for file, names in files.items():
        replace_tables(file, dict.fromkeys(names, ""))  # checks the marks before measuring
    tables = {
        "models": markdown_table(model_rows(find_configs(root), published, progress)),
        "results": results_text(published),
        "family": markdown_table(family_rows(published)),
    }
    for file, names in files.items():
        save_text(file, replace_tables(file, {name: tables[name] for name in names}))


def replace_tables(file: Path, tables: Mapping[str, str]) -> str:
    """Return the text of a file with the tables between their marks replaced."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    for name, table in tables.items():
        begin, end = _mark(name, "begin"), _mark(name, "end")
        parts = re.split(f"({re.escape(begin)}|{re.escape(end)})", text)
        if parts[1::2] != [begin, end]:
            raise ConfigError(
                f"{file} must contain the lines {begin} and {end} once, in this order"
            )
        text = f"{parts[0]}{begin}\n{table}\n{end}{parts[4]}"
    return text


def _mark(name: str, side: str) -> str:
    return f"<!-- {name}:{side} -->"


def find_configs(root: Path) -> dict[str, Path]:
    """Return the configs of the table by name: the path below configs/ without suffix."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.yaml"))]
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def model_rows(
    configs: Mapping[str, Path], published: Published, progress: Callable[[str], None]
) -> list[dict[str, str]]:
    """Return a row for each config; measure those that differ only in training once."""
    known: dict[str, Complexity] = {}
    rows = []
    for name, path in configs.items():
        progress(name)
        cfg = load_config(str(path))
        resolve_num_classes(cfg)
        cfg.MODEL.WEIGHTS = ""
        key = f"{cfg.MODEL.dump()} {input_size(cfg)}"
        if key not in known:
            known[key] = measure(cfg)
        rows.append(
            {
                "config": f"[`{name}`]({name}.yaml)",
                "backbone": backbone_name(cfg),
                "schedule": schedule(cfg),
                "short side": _short_side(cfg),
                "published": headline(published.models.get(name, [])),
                "parameters": f"{known[key].parameters / 1e6:.1f} M",
                "multiply-adds": f"{known[key].multiply_adds / 1e9:.0f} G",
                "at": size_text(known[key].input_size),
            }
        )
    return rows


def headline(results: list[Result]) -> str:
    """Format the main metric of the first result on each split."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.split, result)
    texts = []
    for split, result in first.items():
        name, value = result.main
        label = "test-dev " if split == TEST_DEV else ""
        texts.append(f"{label}{'' if name == 'AP' else name + ' '}{value:.1f}")
    return ", ".join(texts) or "-"


def results_text(published: Published) -> str:
    """Format all published results, a table per split, with sources as footnotes."""
    tables = []
    for split in dict.fromkeys(result.split for _, result in published.named()):
        named = [(name, x) for name, x in published.named() if x.split == split]
        found = dict.fromkeys(metric for _, x in named for metric in x.metrics)
        metrics = [x for x in COLUMNS if x in found] + [x for x in found if x not in COLUMNS]
        rows = [
            {
                "model": f"[`{name}`]({name}.yaml)" if name in published.models else name,
                "recipe": x.recipe or "-",
                **{m: f"{x.metrics[m]:.1f}" if m in x.metrics else "-" for m in metrics},
                "source": f"[^{x.source}]",
            }
            for name, x in named
        ]
        tables.append(f"**{split}**\n\n{markdown_table(rows)}")
    notes = "\n".join(f"[^{key}]: {text}" for key, text in published.sources.items())
    return "\n\n".join([*tables, notes])


def family_rows(published: Published) -> list[dict[str, str]]:
    """Return a row for each model, with its schedules side by side."""
    stems = [name.removeprefix("published/") for name in published.models if "published/" in name]
    rows = []
    for model in dict.fromkeys(stem.rpartition("_")[0] for stem in stems):
        config = f"published/{model}"
        speed = [published.find(f"{config}_{x}", metric="ms") for x in ("3x", "1x")]
        dev = [published.find(f"{config}_{x}", split=TEST_DEV) for x in ("6x", "3x")]
        rows.append(
            {
                "model": model_title(model),
                **{x: _number(published.find(f"{config}_{x}")) for x in ("1x", "3x", "6x")},
                "test-dev": _number(next((x for x in dev if x is not None), None)),
                "ms": _number(next((x for x in speed if x is not None), None), digits=0),
            }
        )
    return rows


def model_title(model: str) -> str:
    """Return the title of a model, such as "SOLOv2 R101 DCN" for solov2_R101_dcn."""
    words = {"solo": "SOLO", "solov2": "SOLOv2", "decoupled": "Decoupled", "dcn": "DCN"}
    return " ".join(words.get(word, word) for word in model.split("_"))


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def backbone_name(cfg: Any) -> str:
    """Return the short name of the backbone, such as R50, R101-DCNv2 or its timm name."""
    model, builder = cfg.MODEL, cfg.MODEL.BACKBONE.NAME
    if "timm" in builder:
        return str(model.TIMM.NAME.partition(".")[0])
    if "swin" in builder:
        return SWINS.get((model.SWIN.EMBED_DIM, tuple(model.SWIN.DEPTHS)), "Swin")
    if "vit" in builder:
        return VITS.get((model.VIT.EMBED_DIM, model.VIT.DEPTH), "ViT")
    if "regnet" in builder:
        return "RegNetY" if model.REGNET.SE_RATIO else "RegNetX"
    resnets = model.RESNETS
    groups, width = resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP
    name = f"X{resnets.DEPTH}-{groups}x{width}d" if groups > 1 else f"R{resnets.DEPTH}"
    if any(resnets.DEFORM_ON_PER_STAGE):
        name += "-DCNv2" if resnets.DEFORM_MODULATED else "-DCN"
    return name


def schedule(cfg: Any) -> str:
    """Express the schedule in units of COCO's 1x, or as iterations and batch size if shorter."""
    solver = cfg.SOLVER
    relative = solver.MAX_ITER * solver.IMS_PER_BATCH / IMAGES_OF_1X
    if relative < 0.95:
        return f"{solver.MAX_ITER / 1000:.3g}k of {solver.IMS_PER_BATCH}"
    whole = round(relative)
    return f"{whole}x" if abs(relative / whole - 1) < 0.05 else f"{relative:.1f}x"


def _short_side(cfg: Any) -> str:
    """Format the range in training, and the test size if it is not the largest."""
    sides, tested = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST
    least, largest = min(sides), max(sides)
    trained = str(least) if least == largest else f"{least}-{largest}"
    return trained if tested == largest else f"{trained}, tested at {tested}"
