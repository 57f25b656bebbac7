"""Properties of a config's model, by the class of MODEL.META_ARCHITECTURE."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN

from solo_d2.config.rules import require

_KEY = "MODEL.META_ARCHITECTURE"
# `predicts_stuff` of this project's models, for programs that import `solo_d2.data` without
# `solo_d2.modeling`, which registers them.
_OWN = {"SOLO": False, "PanopticSOLO": True}


def model_class(cfg: CfgNode) -> Any:
    """Return the registered class, or function, of a config's model, or raise a ConfigError."""
    name, known = cfg.MODEL.META_ARCHITECTURE, sorted(name for name, _ in META_ARCH_REGISTRY)
    allowed = (
        f"one of {', '.join(known)}; import the module that registers it (solo_d2.modeling for "
        "this project)"
    )
    require(isinstance(name, str) and name in known, _KEY, name, allowed)
    return META_ARCH_REGISTRY.get(name)


def is_solo(cfg: CfgNode) -> bool:
    """Return whether the model is a `solo_d2.modeling.SOLO` or an instance of a subclass."""
    return _predicts_stuff(cfg) is not None


def is_panoptic(cfg: CfgNode) -> bool:
    """Return whether the model also predicts stuff, and is trained with semantic labels."""
    predicts_stuff = _predicts_stuff(cfg)
    if predicts_stuff is None:
        model = model_class(cfg)
        return isinstance(model, type) and issubclass(model, PanopticFPN)
    return predicts_stuff


def _predicts_stuff(cfg: CfgNode) -> bool | None:
    """Return `predicts_stuff` of a model of this project, or None for other models."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in _OWN and name not in META_ARCH_REGISTRY:
        return _OWN[name]
    return getattr(model_class(cfg), "predicts_stuff", None)
