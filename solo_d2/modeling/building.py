"""Building parts of a model from a config, with a ConfigError for parts that can't be built."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone

from solo_d2.modeling.checks import check_model_config, check_model_keys
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, SOLOHeadBase, build_solo_head
from solo_d2.utils.errors import ConfigError, DatasetError, first_line
from solo_d2.utils.user_code import from_user_code, is_of_user, note_part

OF_USER = ("MODEL.BACKBONE",)
# By MODEL.BACKBONE.NAME; all other backbones of Detectron2 and this project are ResNets.
_SECTIONS = {
    "build_solo_swin_fpn_backbone": "MODEL.SWIN",
    "build_solo_vit_backbone": "MODEL.VIT",
    "build_solo_regnet_fpn_backbone": "MODEL.REGNET",
    "build_solo_timm_fpn_backbone": "MODEL.TIMM",
}


@contextlib.contextmanager
def refusing(described: str, by: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn errors of Detectron2 and torch for invalid settings into a ConfigError.

    Errors raised by user code keep their traceback.

    Args:
        described: description of the part to build, for messages.
        by: class or function that builds it. If it is user code, all errors are raised unchanged.
    """
    try:
        yield
    except (ConfigError, DatasetError):
        raise
    except Exception as error:
        if from_user_code(error) or (by is not None and is_of_user(by)):
            note_part(error, f"{described} cannot be built")
            raise
        raise ConfigError(f"{described} cannot be built: {first_line(error)}") from error


def build_backbone_and_head(cfg: CfgNode) -> tuple[Backbone, SOLOHeadBase]:
    """Check the config and build backbone and head.

    Raises:
        ConfigError: keys have invalid values or contradict each other.
    """
    check_model_keys(cfg)
    sections = " and ".join(backbone_sections(cfg))
    make_backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)
    with refusing(f"The backbone that {sections} describe", make_backbone):
        backbone = build_backbone(cfg)
    check_model_config(cfg, backbone)
    make_head = SOLO_HEAD_REGISTRY.get(cfg.MODEL.SOLO.HEAD.NAME)
    with refusing("The head that MODEL.SOLO describes", make_head):
        return backbone, build_solo_head(cfg, backbone.output_shape())


def read_params(
    function: Callable[..., Any],
    inputs: Sequence[str],
    section: str,
    node: CfgNode,
    keys: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read the parameters of an NMS or a loss from config keys with the same names in capitals.

    Args:
        function: takes the inputs, then its parameters. Parameters without a key keep their
            defaults.
        inputs: names of the inputs.
        section: name of the config section with the keys.
        node: the section.
        keys: keys of parameters with other names.

    Returns:
        The values by parameter.

    Raises:
        ConfigError: a parameter has neither key nor default, or the function does not accept the
            inputs.
    """
    signature = inspect.signature(function)
    name = getattr(function, "__name__", repr(function))
    params = {}
    for index, parameter in enumerate(signature.parameters.values()):
        is_input = index < len(inputs) and parameter.kind is not parameter.KEYWORD_ONLY
        if is_input or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        key = (keys or {}).get(parameter.name, parameter.name.upper())
        if key in node:
            params[parameter.name] = node[key]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"{section}.{key} is missing, the key of the parameter {parameter.name!r} of "
                f"{name}: declare it (docs/extending.md), or give the parameter a default"
            )
    try:
        signature.bind(*inputs, **params)
    except TypeError as error:
        raise ConfigError(
            f"{section} selects {name}{signature}, which must accept {', '.join(inputs)} and then "
            f"its parameters: {error}"
        ) from error
    return params


def backbone_sections(cfg: CfgNode) -> tuple[str, ...]:
    """Return the config sections of the backbone; `OF_USER` for a backbone of the user."""
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY or is_of_user(BACKBONE_REGISTRY.get(name)):
        return OF_USER
    return "MODEL.BACKBONE", _SECTIONS.get(name, "MODEL.RESNETS"), "MODEL.FPN"
