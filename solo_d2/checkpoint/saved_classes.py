"""The classes saved in a checkpoint."""

import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from solo_d2.checkpoint.reading import read_torch
from solo_d2.data.classes import Category, is_category_list, stuff, things
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

# In a checkpoint, at the same level as "model".
KEY = "classes"


def read_saved_classes(weights: str) -> list[Category]:
    """Read the classes saved with MODEL.WEIGHTS, without reading the weights.

    Returns:
        The categories; empty if there are none, as in files of other projects, or if the file
        cannot be read, which is reported when the weights are loaded.
    """
    if not weights:
        return []
    try:
        file = PathManager.get_local_path(urlsplit(weights)._replace(query="").geturl())
        loaded = read_torch(file, mmap=True)
    except Exception:  # torch and the network raise errors of many types
        return []
    found: Any = loaded.get(KEY) if isinstance(loaded, dict) else None
    return list(found) if is_category_list(found) else []


def adopt_saved_classes(cfg: CfgNode, overrides: Sequence[Any] = ()) -> None:
    """Copy the classes saved with MODEL.WEIGHTS to the config, in place.

    Replaces MODEL.CLASSES, unless there are no saved classes, and sets class counts of 0.

    Args:
        cfg: config with MODEL.WEIGHTS.
        overrides: KEY, VALUE, ... of the command line, already merged into the config. If they
            contain MODEL.CLASSES, it is kept.

    Raises:
        ConfigError: MODEL.SOLO.NUM_CLASSES differs from the number of saved classes.
    """
    model = cfg.MODEL
    saved = [] if "MODEL.CLASSES" in overrides else read_saved_classes(model.WEIGHTS)
    if saved and model.CLASSES and [dict(x) for x in model.CLASSES] != saved:
        logger.warning(
            "MODEL.CLASSES has other classes than the weights %s: those of the weights are used",
            model.WEIGHTS,
        )
    model.CLASSES = saved or model.CLASSES
    number = len(things(saved))
    if saved and model.SOLO.NUM_CLASSES not in (0, number):
        raise ConfigError(
            f"MODEL.SOLO.NUM_CLASSES is {model.SOLO.NUM_CLASSES}, but the weights {model.WEIGHTS} "
            f"have {number} classes: set it to {number}, or use the config of the weights"
        )
    if model.SOLO.NUM_CLASSES == 0:
        model.SOLO.NUM_CLASSES = len(things(model.CLASSES))
    if model.SEM_SEG_HEAD.NUM_CLASSES == 0 and stuff(model.CLASSES):
        model.SEM_SEG_HEAD.NUM_CLASSES = 1 + len(stuff(model.CLASSES))
