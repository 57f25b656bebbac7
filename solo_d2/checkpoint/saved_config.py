"""The config that training or conversion writes beside a checkpoint."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from solo_d2.config.rules import leaves
from solo_d2.utils.errors import listed, shown

logger = logging.getLogger("solo_d2")

# Keys that change the results of trained weights, but not the shape of any.
SETTINGS = (
    *("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1"),
    *("MODEL.FPN.FUSE_TYPE", "MODEL.SOLO.IN_FEATURES", "MODEL.SOLO.STRIDES"),
    *("MODEL.SOLO.NUM_GRIDS", "MODEL.SOLO.MASK_TARGET", "MODEL.SOLO.HEAD.ALIGN"),
)


def beside(weights: str | Path) -> list[Path]:
    """Return the paths where the config of a checkpoint `x.pth` may be: x.yaml and config.yaml."""
    path = Path(weights)
    return [path.with_suffix(".yaml"), path.parent / "config.yaml"]


def differences(before: Mapping[str, Any], after: CfgNode) -> dict[str, str]:
    """Return "key old -> new" for the keys of both whose values differ; lists equal tuples."""
    old = dict(leaves(before))
    return {
        key: f"{key} {shown(old[key])} -> {shown(value)}"
        for key, value in leaves(after)
        if key in old and json.dumps(old[key], default=str) != json.dumps(value, default=str)
    }


def warn_of_other_settings(cfg: CfgNode) -> None:
    """Warn if keys of the model differ from the config beside MODEL.WEIGHTS."""
    weights = cfg.MODEL.WEIGHTS
    if not weights or "://" in weights:
        return
    file = next(filter(Path.is_file, beside(weights)), None)
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError, yaml.YAMLError):  # not written by training or conversion
        return
    found = differences(saved, cfg) if isinstance(saved, dict) else {}
    changes = [text for key, text in found.items() if key in SETTINGS]
    if changes:
        logger.warning(
            f"The weights {weights} were trained with other settings, see {file}: {listed(changes)}"
        )
