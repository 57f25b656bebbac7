#!/usr/bin/env python3
"""Evaluate published checkpoints with their configs, and compare with the published AP.

    python tools/verify_published.py weights/ datasets/coco --output verified.json

Reads all .pth, .pkl and .safetensors files of the folder, in the format of the authors' code,
AdelaiDet or mmdetection. The weights determine the model; the file name must contain the schedule
(1x, 3x or 6x), such as SOLOv2_R50_3x.pth or solo_r50_fpn_1x_coco.pth. The folder of COCO has
annotations/instances_val2017.json and val2017/.

Exit codes: 0 all checkpoints were evaluated, 1 some failed, 2 nothing could be done.
"""

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported

from solo_d2.api.loading import choose_device  # noqa: E402
from solo_d2.checkpoint.convert import plan_conversion  # noqa: E402
from solo_d2.config import configs_folder, load_config  # noqa: E402
from solo_d2.data.catalog import register_datasets_of_config  # noqa: E402
from solo_d2.engine import evaluate  # noqa: E402
from solo_d2.utils.errors import ConfigError, DatasetError  # noqa: E402
from solo_d2.utils.files import save_text  # noqa: E402
from tools.arguments import entry_point, plain_parser  # noqa: E402
from tools.benchmarks.common import markdown_table  # noqa: E402
from tools.model_zoo.published import VAL, Published, read_published  # noqa: E402

DATASET = "published_val2017"
SUFFIXES = (".pth", ".pkl", ".safetensors")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("weights", type=Path, metavar="WEIGHTS_FOLDER", help="folder of checkpoints")
    add("coco", type=Path, metavar="COCO", help="folder of COCO")
    add("--device", help="cpu or cuda; default: cuda if available")
    add("--output", type=Path, metavar="FILE", help="write the results as JSON")
    return parser.parse_args(argv)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints below a folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise ConfigError(f"{folder} has no {', '.join(SUFFIXES)} file")
    return files


def config_of(file: Path, published: Published) -> str:
    """Return the name of the config that describes a checkpoint."""
    plan = plan_conversion(file)
    folder = "coco" if "AdelaiDet" in plan.source.title else "published"
    model = f"{folder}/{plan.base.stem.rpartition('_')[0]}"
    schedules = [name[-2:] for name in published.models if name[:-3] == model]
    named = re.findall(r"(?<![a-z0-9])[136]x(?![a-z0-9])", file.stem.lower())
    found = [x for x in schedules if x in named] or (schedules if not named else [])
    if len(found) != 1:
        raise ConfigError(
            f"{file}: no result is published for a model like {model}"
            if not schedules
            else f"{file}: the file name must contain the schedule, one of {', '.join(schedules)}"
        )
    return f"{model}_{found[0]}"


def verify(file: Path, config: str, args: argparse.Namespace) -> dict[str, float]:
    """Evaluate a checkpoint with its config; return mask AP metrics in percent."""
    path = configs_folder() / f"{config}.yaml"
    plan = plan_conversion(file, path)
    cfg = load_config(str(path), [x for item in plan.settings.items() for x in item])
    with tempfile.TemporaryDirectory() as folder:
        images, annotations = dataset_paths(args.coco)
        cfg.DATASETS.COCO_FORMAT = [[DATASET, str(annotations), str(images)]]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (DATASET,)
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(file), choose_device(args.device)
        cfg.OUTPUT_DIR = folder
        register_datasets_of_config(cfg)
        cfg.freeze()
        metrics: dict[str, Any] = evaluate(cfg)["segm"]
    return {name: metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}


def dataset_paths(coco: Path) -> tuple[Path, Path]:
    """Return the folder of the images and the annotations; DatasetError if missing."""
    paths = coco / "val2017", coco / "annotations/instances_val2017.json"
    for path in paths:
        if not path.exists():
            raise DatasetError(f"{path} does not exist: COCO must be the folder of COCO 2017")
    return paths


def run(args: argparse.Namespace) -> int:
    """Evaluate all checkpoints and print the table."""
    published = read_published(configs_folder())
    files = find_checkpoints(args.weights)
    dataset_paths(args.coco)
    results = []
    for file in files:
        result: dict[str, Any] = {"file": str(file.relative_to(args.weights))}
        results.append(result)
        try:
            result["config"] = config = config_of(file, published)
            result["metrics"] = verify(file, config, args)
            result["published"] = published.find(config)
        except ConfigError as error:  # continue with the other files
            result["error"] = str(error)
            logging.getLogger("solo_d2").error("%s", error)
        if args.output:
            save_text(args.output, json.dumps(results, indent=2))
    print(f"\nMask AP on {VAL}\n\n{markdown_table([_row(x) for x in results])}")
    return int(any("error" in result for result in results))


def _row(result: dict[str, Any]) -> dict[str, str]:
    ours, theirs = result.get("metrics", {}).get("AP"), result.get("published")
    known = ours is not None and theirs is not None
    return {
        "file": result["file"],
        "config": result.get("config", "-"),
        "AP": "failed" if ours is None else f"{ours:.1f}",
        "published": "-" if theirs is None else f"{theirs:.1f}",
        "difference": f"{ours - theirs:+.1f}" if known else "-",
    }


main = entry_point("verify_published", parse_args, run, log=True)

if __name__ == "__main__":
    sys.exit(main())
