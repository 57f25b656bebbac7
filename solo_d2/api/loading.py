"""Load models for inference: configs, weights and devices."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.saved_classes import adopt_saved_classes
from solo_d2.checkpoint.saved_config import beside, warn_of_other_settings
from solo_d2.config import load_config
from solo_d2.config.models import is_panoptic, model_class
from solo_d2.data.catalog import resolve_num_classes
from solo_d2.data.input_checks import check_input_config
from solo_d2.modeling.meta_arch import SOLO
from solo_d2.modeling.unused_keys import warn_of_unused_keys
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger("solo_d2")

CONFIG_EXTENSIONS = (".yaml", ".yml")


def make_config(
    config_file: str | Path,
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    overrides: Sequence[Any] = (),
) -> CfgNode:
    """Load a config for inference.

    Args:
        config_file: YAML file, such as config.yaml of a training.
        weights: checkpoint; None for the config's MODEL.WEIGHTS.
        device: "cpu", "cuda", "cuda:1", ...; None for CUDA if available.
        overrides: see `solo_d2.config.override`.

    Raises:
        ConfigError: the file, a key, a value, the weights or the device cannot be used.
        DatasetError: the number of classes depends on a data set that cannot be read.
    """
    cfg = load_config(str(config_file), overrides)
    warn_of_unused_keys(cfg, config_file, overrides)
    return complete_config(cfg, weights, device=device, overrides=overrides)


def complete_config(
    cfg: CfgNode,
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    overrides: Sequence[Any] = (),
) -> CfgNode:
    """Fill in weights, device, classes and their counts, in place; see `make_config`."""
    if weights is not None:
        cfg.MODEL.WEIGHTS = str(weights)
    _check_weights_exist(cfg.MODEL.WEIGHTS)
    warn_of_other_settings(cfg)
    if cfg.TEST.AUG.ENABLED:
        logger.warning(
            "TEST.AUG.ENABLED has no effect here: only evaluations have test-time augmentation"
        )
    cfg.MODEL.DEVICE = choose_device(device)
    adopt_saved_classes(cfg, overrides)
    lacks_labels = is_panoptic(cfg) and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0
    if cfg.MODEL.SOLO.NUM_CLASSES == 0 or lacks_labels:
        resolve_num_classes(cfg)
    return cfg


def find_config(checkpoint: str | Path) -> Path:
    """Find the config of a checkpoint in its folder.

    For `x.pth` this is `x.yaml`, as written by tools/convert_weights.py, or else `config.yaml`, as
    written by a training. Raises ConfigError if neither or no checkpoint exists.
    """
    path = Path(checkpoint)
    _require_weights(path)
    places = beside(path)
    for config in places:
        if config.is_file():
            return config
    raise ConfigError(
        f"There is no config beside {path}: neither {places[0].name} nor {places[1].name} exists. "
        "Pass the config that it was trained with"
    )


def load_model(cfg: CfgNode) -> SOLO:
    """Build a model with its weights, in evaluation mode.

    Args:
        cfg: config with MODEL.WEIGHTS, MODEL.DEVICE and MODEL.SOLO.NUM_CLASSES set.

    Raises:
        ConfigError: the model cannot be built, or weights are missing.
    """
    check_input_config(cfg)
    try:
        model_class(cfg)
        model: SOLO = build_model(cfg.clone()).eval()
    except ConfigError as error:
        raise ConfigError(f"The config's model cannot be built: {error}") from error
    SOLOCheckpointer(model, whole=True).load(cfg.MODEL.WEIGHTS)
    return model


def choose_device(wanted: str | None) -> str:
    """Return the wanted device, or for None CUDA if available; ConfigError if unavailable."""
    available = torch.cuda.is_available()
    if wanted is None:
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise ConfigError(f"The device {wanted} is unknown: use cpu or cuda") from None
    if kind == "cuda" and not available:
        raise ConfigError(f"The device {wanted} is not available: there is no CUDA GPU. Use cpu")
    return wanted


def _check_weights_exist(weights: str) -> None:
    if not weights:
        raise ConfigError("MODEL.WEIGHTS is empty: pass a trained checkpoint with --weights FILE")
    if "://" not in weights:
        _require_weights(Path(weights))


def _require_weights(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(
            f"The weights {path} are a folder: name a file in it, such as model_final.pth"
        )
    if not path.is_file():
        raise ConfigError(f"The weights file {path} does not exist (--weights or MODEL.WEIGHTS)")
