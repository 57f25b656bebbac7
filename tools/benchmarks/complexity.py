"""Parameters and multiply-adds of configs, and the table of configs/README.md that shows them.

Nothing is computed: tensors have a shape and a place on torch's "meta" device, so that the true
input size takes a second. An image of COCO's usual 480x640 is scaled to INPUT.MIN_SIZE_TEST and
padded. What is counted are the multiply-adds of convolutions (deformable ones with their offset
convolution) and matrix products in backbone, head and semantic branch, one multiply-add as one.
Norms, activations, resizes, the bilinear sampling of deformable convolutions, and all that depends
on what is found in the image, such as SOLOv2's dynamic convolution, are not.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from solo_d2.config import load_config
from solo_d2.data import resolve_num_classes
from solo_d2.engine import Trainer
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import save_text
from tools.benchmarks.common import markdown_table, size_text

IMAGE_SIZE = (480, 640)
# Folders of configs/ that the table lists, in this order.
FOLDERS = ("coco", "lvis", "cityscapes", "panoptic")
# A 1x schedule: 12 epochs of COCO.
ITERATIONS_OF_1X, BATCH_OF_1X = 90_000, 16
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"

SWINS = {
    (96, (2, 2, 6, 2)): "Swin-T",
    (96, (2, 2, 18, 2)): "Swin-S",
    (128, (2, 2, 18, 2)): "Swin-B",
    (192, (2, 2, 18, 2)): "Swin-L",
}
VITS = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}


@dataclass(frozen=True)
class Complexity:
    """Size of a model."""

    parameters: int  # frozen ones too; the constants of a frozen BatchNorm are none
    multiply_adds: int  # of one image
    input_size: tuple[int, int]  # of that image, padded


def count_multiply_adds(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-adds of convolutions and matrix products in one call, without gradients.

    Not for a GPU: its deformable convolution is one operator that torch does not count.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops() // 2  # torch counts multiplication and addition


def measure(cfg: Any) -> Complexity:
    """Build the model of a config, whatever its MODEL.DEVICE, and count."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    model = Trainer.build_model(cfg).eval()
    divisor = max(1, model.backbone.size_divisibility)
    height, width = (-(-side // divisor) * divisor for side in input_size(cfg))
    images = torch.empty(1, 3, height, width, device="meta")
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=count_multiply_adds(model.network, images),
        input_size=(height, width),
    )


def input_size(cfg: Any) -> tuple[int, int]:
    """Height and width, before padding, to which an image of `IMAGE_SIZE` is scaled in testing."""
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if short == 0:  # images stay as they are
        return IMAGE_SIZE
    scale = min(short / min(IMAGE_SIZE), longest / max(IMAGE_SIZE))
    height, width = (int(side * scale + 0.5) for side in IMAGE_SIZE)
    return height, width


def find_configs(root: Path) -> dict[str, Path]:
    """The configs that the table lists, by their name: the path below configs/ without ending."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.yaml"))]
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def table_rows(
    configs: Mapping[str, Path], published: dict[str, Any], progress: Callable[[str], None]
) -> list[dict[str, str]]:
    """Measure all configs; those that differ in training alone are measured once.

    `published`: name of a config -> {"published": {"value", "source", and optionally "metric" ("AP"
    unless said) and "split"}, "ours": text}, of which either may be missing. `progress` is told
    the name of each config.
    """
    known: dict[str, Complexity] = {}
    sources = source_numbers(published)
    rows = []
    for name, path in configs.items():
        progress(name)
        cfg = load_config(str(path))
        resolve_num_classes(cfg)
        cfg.MODEL.WEIGHTS = ""
        key = f"{cfg.MODEL.dump()} {input_size(cfg)}"
        if key not in known:
            known[key] = measure(cfg)
        complexity, entry = known[key], published.get(name, {})
        rows.append(
            {
                "config": f"[`{name}`]({name}.yaml)",
                "backbone": backbone_name(cfg),
                "schedule": schedule(cfg),
                "short side": _short_side(cfg),
                "published": _published(entry.get("published"), sources),
                "ours": entry.get("ours", "-"),
                "parameters": f"{complexity.parameters / 1e6:.1f} M",
                "multiply-adds": f"{complexity.multiply_adds / 1e9:.0f} G",
                "at": size_text(complexity.input_size),
            }
        )
    return rows


def source_numbers(published: dict[str, Any]) -> dict[str, int]:
    """Number the sources of the published results from 1, in the order of the file."""
    sources = [entry["published"]["source"] for entry in published.values() if "published" in entry]
    return {source: number for number, source in enumerate(dict.fromkeys(sources), start=1)}


def backbone_name(cfg: Any) -> str:
    """Short name of the backbone, such as R50, R101-DCNv2, X101-64x4d or Swin-T."""
    model, builder = cfg.MODEL, cfg.MODEL.BACKBONE.NAME
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
    """In terms of COCO's; of a shorter one, iterations and batch size."""
    solver = cfg.SOLVER
    relative = solver.MAX_ITER * solver.IMS_PER_BATCH / BATCH_OF_1X / ITERATIONS_OF_1X
    if relative < 1:
        return f"{solver.MAX_ITER / 1000:.3g}k of {solver.IMS_PER_BATCH}"
    return f"{relative:.3g}x"


def _short_side(cfg: Any) -> str:
    """Range in training, and the one in testing if it is not the largest."""
    sides, tested = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST
    least, largest = min(sides), max(sides)
    trained = str(least) if least == largest else f"{least}-{largest}"
    return trained if tested == largest else f"{trained}, tested at {tested}"


def _published(result: dict[str, Any] | None, sources: dict[str, int]) -> str:
    if result is None:
        return "-"
    metric = result["metric"] + " " if "metric" in result else ""
    split = f" ({result['split']})" if "split" in result else ""
    return f"{metric}{result['value']:.1f}{split}[^{sources[result['source']]}]"


def update_table(root: Path, progress: Callable[[str], None]) -> None:
    """Measure all configs below a folder, and rewrite its README.md with its published.json.

    Raises:
        ConfigError: a file or config can't be used; README.md is then as it was.
    """
    readme, file = root / "README.md", root / "published.json"
    for needed in (readme, file):
        if not needed.is_file():
            raise ConfigError(f"There is no {needed}")
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", readme.read_text())
    if parts[1::2] != [BEGIN, END]:
        raise ConfigError(f"{readme} must have the lines {BEGIN} and {END} once, in this order")
    configs, published = find_configs(root), json.loads(file.read_text())
    unknown = sorted(set(published) - set(configs))
    if unknown:
        raise ConfigError(f"{file}: there is no config {', '.join(unknown)}")
    table = markdown_table(table_rows(configs, published, progress))
    notes = "\n".join(f"[^{number}]: {x}" for x, number in source_numbers(published).items())
    body = f"{table}\n\n{notes}".strip()
    save_text(readme, f"{parts[0]}{BEGIN}\n{body}\n{END}{parts[4]}")
