#!/usr/bin/env python3
r"""Draw how SOLO processes an image of a data set: targets, scores, kernels and masks, mask NMS.

    python tools/draw_method.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --dataset shapes_val --index 3 --output method
    python tools/draw_method.py --config-file configs/coco/solov2_R50_3x.yaml \
        --dataset coco_2017_val --output method --pictures targets center

"targets" and "center" need no weights. Each picture is a JPG. The exit code is 2 if something is
missing or cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.detection_utils import build_augmentation  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

from solo_d2 import ConfigError  # noqa: E402
from solo_d2.api.images import save_image  # noqa: E402
from solo_d2.api.loading import load_model, make_config  # noqa: E402
from solo_d2.config import load_config  # noqa: E402
from solo_d2.data import (  # noqa: E402
    SOLODatasetMapper,
    check_datasets,
    register_datasets_of_config,
    require_model_classes,
    resolve_num_classes,
)
from tools.arguments import entry_point, model_parser  # noqa: E402
from tools.figures.method import PICTURES, make_scene  # noqa: E402

# Pictures of the ground truth only.
WITHOUT_WEIGHTS = {"targets", "center"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = model_parser(__doc__, device=False)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="data set, registered or of the config")
    add("--index", type=int, default=0, metavar="N", help="index of the image; default: 0")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    add("--pictures", nargs="+", choices=sorted(PICTURES), metavar="NAME",
        help=f"from {', '.join(PICTURES)}; default: all that --weights allows")  # fmt: skip
    args = parser.parse_args(argv)
    if args.pictures is None:
        args.pictures = [name for name in PICTURES if args.weights or name in WITHOUT_WEIGHTS]
    needing = sorted(set(args.pictures) - WITHOUT_WEIGHTS)
    if needing and not args.weights:
        parser.error(f"{', '.join(needing)} show a trained model: add --weights")
    return args


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Load the config and register its data sets."""
    if args.weights:
        cfg = make_config(args.config_file, args.weights, device="cpu", overrides=args.opts)
    else:
        cfg = load_config(args.config_file, args.opts)
        cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TEST = (args.dataset,)
    register_datasets_of_config(cfg)
    check_datasets([args.dataset])
    require_model_classes(cfg, [args.dataset])
    resolve_num_classes(cfg, [args.dataset])
    return cfg


def read_sample(cfg: CfgNode, dataset: str, index: int) -> dict[str, Any]:
    """Return a training sample at test size, without flips and crops."""
    samples = DatasetCatalog.get(dataset)
    if not 0 <= index < len(samples):
        raise ConfigError(f"--index {index}: {dataset} has the images 0 to {len(samples) - 1}")
    augmentations = build_augmentation(cfg, is_train=False)
    mapper = SOLODatasetMapper(cfg, is_train=True, augmentations=augmentations)
    return mapper(samples[index])


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    cfg = setup_cfg(args)
    torch.manual_seed(0)
    model = load_model(cfg) if args.weights else build_model(cfg).eval()
    scene = make_scene(model, read_sample(cfg, args.dataset, args.index))
    names = MetadataCatalog.get(args.dataset).thing_classes
    for name in args.pictures:
        file = args.output / f"{name}.jpg"
        save_image(file, PICTURES[name](model, scene, names))
        print(file)


main = entry_point("draw_method", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
