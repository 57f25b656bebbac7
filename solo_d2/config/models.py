"""What a config's model is, by the class that MODEL.META_ARCHITECTURE names."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN

from solo_d2.config.rules import require

_KEY = "MODEL.META_ARCHITECTURE"


def model_class(cfg: CfgNode) -> Any:
    """Return the registered class, or function, of a config's model.

    Raises:
        ConfigError: nothing is registered under that name.
    """
    name, known = cfg.MODEL.META_ARCHITECTURE, sorted(name for name, _ in META_ARCH_REGISTRY)
    allowed = (
        f"one of {', '.join(known)}; a module registers more when it is imported, solo_d2.modeling "
        "those of this project"
    )
    require(isinstance(name, str) and name in known, _KEY, name, allowed)
    return META_ARCH_REGISTRY.get(name)


def is_solo(cfg: CfgNode) -> bool:
    """Return whether the model is a `solo_d2.modeling.SOLO` or of a class derived from it."""
    return hasattr(model_class(cfg), "predicts_stuff")


def is_panoptic(cfg: CfgNode) -> bool:
    """Return whether the model predicts stuff too, so that it trains on semantic labels."""
    model = model_class(cfg)
    other = isinstance(model, type) and issubclass(model, PanopticFPN)
    return getattr(model, "predicts_stuff", other)
