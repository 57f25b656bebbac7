"""Command-line arguments that name data sets in COCO's formats, and what they mean in a config."""

import argparse
import logging
from typing import Any

from detectron2.config import CfgNode

from solo_d2.data.catalog import DATASET_FORMATS
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

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

    The data sets are named custom_train and custom_val. Entries of these names, as a saved config
    has them, are replaced. With training data and no --val-json, data sets of DATASETS.TEST that
    the config does not describe itself are left out, with a warning: they are those of the project.

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
            _replace_entry(cfg, "COCO_FORMAT", entry)
        elif present == ["panoptic_json", "panoptic_dir", "images"]:
            _replace_entry(cfg, "COCO_PANOPTIC_FORMAT", entry)
        elif present:
            raise ConfigError(
                f"--{split}-json and --{split}-images belong together: give both; or "
                f"--{split}-panoptic-json, --{split}-panoptic-dir and --{split}-images: give all "
                "three"
            )
        if present:
            cfg.DATASETS[key] = (name,)
            names.append(name)
    if names == ["custom_train"]:
        _leave_out_other_tests(cfg)
    return names


def _replace_entry(cfg: CfgNode, kind: str, entry: list[Any]) -> None:
    """Add the entry of a data set; others of its name are removed."""
    datasets = cfg.DATASETS
    for key in set(DATASET_FORMATS) & set(datasets):
        datasets[key] = [other for other in datasets[key] if list(other)[:1] != entry[:1]]
    datasets[kind] = [*datasets[kind], entry]


def _leave_out_other_tests(cfg: CfgNode) -> None:
    """Keep of DATASETS.TEST what the config describes itself."""
    datasets = cfg.DATASETS
    own = [entry[0] for key in DATASET_FORMATS for entry in datasets.get(key, ())]
    others = [name for name in datasets.TEST if name not in own]
    datasets.TEST = tuple(name for name in datasets.TEST if name in own)
    if others:
        logger.warning(
            "No --val-json is given: %s of the config is not evaluated on",
            ", ".join(others),
        )
