"""From files to a model that is ready to run: configs, weights, exported models, devices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.checkpoint.saved_classes import adopt_saved_classes
from solo_d2.config import load_config
from solo_d2.config.models import is_panoptic, model_class
from solo_d2.data.catalog import resolve_num_classes
from solo_d2.data.input_checks import check_input_config
from solo_d2.modeling.meta_arch import SOLO
from solo_d2.modeling.unused_keys import warn_of_unused_keys
from solo_d2.utils.errors import ConfigError

CONFIG_EXTENSIONS = (".yaml", ".yml")


def make_config(
    config_file: str | Path,
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    overrides: Sequence[Any] = (),
) -> CfgNode:
    """Make the config of a model that is only run.

    Args:
        config_file: YAML; also a training's config.yaml.
        weights: checkpoint; None: the config's MODEL.WEIGHTS.
        device: "cpu", "cuda", "cuda:1", ...; None: CUDA where there is one.
        overrides: see `solo_d2.config.override`.

    Raises:
        ConfigError: file, keys, values, weights or device cannot be used.
        DatasetError: the number of classes must be taken from a data set that cannot be read.
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
    cfg.MODEL.DEVICE = choose_device(device)
    adopt_saved_classes(cfg, overrides)
    lacks_labels = is_panoptic(cfg) and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 0
    if cfg.MODEL.SOLO.NUM_CLASSES == 0 or lacks_labels:
        resolve_num_classes(cfg)
    return cfg


def find_config(checkpoint: str | Path) -> Path:
    """Find the config of a checkpoint, in its folder.

    Training writes `config.yaml` into its OUTPUT_DIR, and tools/convert_weights.py writes for
    `x.pth` a file `x.yaml`, which comes first.

    Raises:
        ConfigError: there is neither, or no checkpoint.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise ConfigError(f"The weights file {path} does not exist")
    beside = [path.with_suffix(".yaml"), path.parent / "config.yaml"]
    for config in beside:
        if config.is_file():
            return config
    raise ConfigError(
        f"No config lies beside {path}: there is neither {beside[0].name} nor {beside[1].name}. "
        "Name the one that it was trained with"
    )


def load_model(cfg: CfgNode) -> SOLO:
    """Build a model with its weights, in evaluation mode.

    Args:
        cfg: with MODEL.WEIGHTS, MODEL.DEVICE and MODEL.SOLO.NUM_CLASSES filled in.

    Raises:
        ConfigError: the model can't be built, or the weights are not all of it.
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
    """Return the wanted device, if it is available; None: CUDA where it is available.

    Raises:
        ConfigError: it is unknown or not there.
    """
    available = torch.cuda.is_available()
    if wanted is None:
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise ConfigError(f"The device {wanted} is unknown: say cpu or cuda") from None
    if kind == "cuda" and not available:
        raise ConfigError(f"The device {wanted} can't be used: there is no CUDA here; say cpu")
    return wanted


def _check_weights_exist(weights: str) -> None:
    if not weights:
        raise ConfigError("MODEL.WEIGHTS is empty: name a trained checkpoint by --weights FILE")
    if "://" not in weights and not Path(weights).is_file():
        raise ConfigError(f"The weights file {weights} does not exist (--weights or MODEL.WEIGHTS)")
