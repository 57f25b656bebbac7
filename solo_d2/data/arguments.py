"""Command-line arguments that name data sets in COCO's formats, and what they mean in a config."""

import argparse

from detectron2.config import CfgNode

from solo_d2.errors import ConfigError

_KINDS = ("json", "panoptic_json", "panoptic_dir", "images")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --train-json and its like, for data sets without registration in code."""
    group = parser.add_argument_group("your own data in COCO format (no registration in code)")
    for split, use in (("train", "train on"), ("val", "evaluate on")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"instances to {use}")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of the images")
        group.add_argument(
            f"--{split}-panoptic-json", metavar="FILE", help=f"panoptic annotations to {use}"
        )
        group.add_argument(f"--{split}-panoptic-dir", metavar="DIR", help="folder of their PNGs")


def apply_dataset_arguments(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Turn --train-json and its like into DATASETS keys, in place.

    Returns:
        The names that the data sets get.

    Raises:
        ConfigError: only a part of what belongs together is given.
    """
    names = []
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        given = {kind: getattr(args, f"{split}_{kind}", None) for kind in _KINDS}
        present = [kind for kind, value in given.items() if value]
        name = f"custom_{split}"
        entry = [name, *(given[kind] for kind in present)]
        if present == ["json", "images"]:
            cfg.DATASETS.COCO_FORMAT = [*cfg.DATASETS.COCO_FORMAT, entry]
        elif present == ["panoptic_json", "panoptic_dir", "images"]:
            cfg.DATASETS.COCO_PANOPTIC_FORMAT = [*cfg.DATASETS.COCO_PANOPTIC_FORMAT, entry]
        elif present:
            raise ConfigError(
                f"--{split}-json and --{split}-images belong together: give both; or "
                f"--{split}-panoptic-json, --{split}-panoptic-dir and --{split}-images: give all "
                "three"
            )
        if present:
            cfg.DATASETS[key] = (name,)
            names.append(name)
    return names
