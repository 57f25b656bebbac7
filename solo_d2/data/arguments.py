"""Command-line arguments for data sets in COCO formats, and their config keys."""

import argparse
import logging

from detectron2.config import CfgNode

from solo_d2.data.catalog import DATASET_FORMATS
from solo_d2.data.classes import is_category_list, stuff, things
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

_PARTS = ("json", "panoptic_json", "panoptic_dir", "images")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --train-json, --train-images and so on, for data sets without registration in code."""
    group = parser.add_argument_group("your own data in COCO format (no registration in code)")
    for split, use in (("train", "train on"), ("val", "evaluate on")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"instances to {use}")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of the images")
        group.add_argument(
            f"--{split}-panoptic-json", metavar="FILE", help=f"panoptic annotations to {use}"
        )
        group.add_argument(f"--{split}-panoptic-dir", metavar="DIR", help="folder of their PNGs")


def apply_dataset_arguments(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Set the DATASETS keys from --train-json, --train-images and so on, in place.

    The data sets are named custom_train and custom_val; entries of these names in the config are
    replaced. Training data also resets the classes that an earlier training has filled in. With
    training data but without validation data, names in DATASETS.TEST that the config does not
    define are removed, with a warning, since they belong to other data.

    Returns:
        The names of the data sets.

    Raises:
        ConfigError: arguments that belong together are missing.
    """
    names, datasets = [], cfg.DATASETS
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        given = {part: getattr(args, f"{split}_{part}", None) for part in _PARTS}
        present = [part for part, value in given.items() if value]
        name = f"custom_{split}"
        if present == ["json", "images"]:
            kind = "COCO_FORMAT"
        elif present == ["panoptic_json", "panoptic_dir", "images"]:
            kind = "COCO_PANOPTIC_FORMAT"
        elif present:
            raise ConfigError(
                f"--{split}-json and --{split}-images belong together: give both; or "
                f"--{split}-panoptic-json, --{split}-panoptic-dir and --{split}-images: give all "
                "three"
            )
        else:
            continue
        for other in set(DATASET_FORMATS) & set(datasets):
            datasets[other] = [e for e in datasets[other] if list(e)[:1] != [name]]
        datasets[kind] = [*datasets[kind], [name, *(given[part] for part in present)]]
        datasets[key] = (name,)
        names.append(name)
    if "custom_train" in names:
        _forget_classes(cfg)
    if names == ["custom_train"]:
        own = [entry[0] for key in DATASET_FORMATS for entry in datasets.get(key, ())]
        others = [name for name in datasets.TEST if name not in own]
        datasets.TEST = tuple(name for name in datasets.TEST if name in own)
        if others:
            text = "No --val-json is given: %s of the config will not be evaluated"
            logger.warning(text, ", ".join(others))
    return names


def _forget_classes(cfg: CfgNode) -> None:
    """Reset MODEL.CLASSES of a saved config, and the numbers of classes that agree with it."""
    model, saved = cfg.MODEL, cfg.MODEL.CLASSES
    if not is_category_list(saved) or not saved:
        return
    if model.SOLO.NUM_CLASSES == len(things(saved)):
        model.SOLO.NUM_CLASSES = 0
    if model.SEM_SEG_HEAD.NUM_CLASSES == 1 + len(stuff(saved)):
        model.SEM_SEG_HEAD.NUM_CLASSES = 0
    model.CLASSES = []
