"""Building parts of a model from a config: what cannot be built is a ConfigError."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from solo_d2.utils.errors import ConfigError, DatasetError, first_line
from solo_d2.utils.user_code import from_user_code, is_of_user, note_part

OF_USER = ("MODEL.BACKBONE",)
# By MODEL.BACKBONE.NAME; all others of Detectron2 and of this project are ResNets.
_SECTIONS = {
    "build_solo_swin_fpn_backbone": "MODEL.SWIN",
    "build_solo_vit_backbone": "MODEL.VIT",
    "build_solo_regnet_fpn_backbone": "MODEL.REGNET",
}


@contextlib.contextmanager
def refusing(described: str, by: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn what libraries raise into a ConfigError, for settings that they have to judge.

    Detectron2 and torch have no common error for settings that do not fit each other. What code of
    the user raises keeps its traceback.

    Args:
        described: what cannot be built then.
        by: class or function that builds it. What is raised for one of the user concerns its
            author, also where Detectron2 raises it, as for wrong arguments.
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


def read_params(
    function: Callable[..., Any],
    inputs: Sequence[str],
    section: str,
    node: CfgNode,
    keys: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read the parameters of an NMS or a loss from the config keys of the same names in capitals.

    A parameter without a key keeps its default.

    Args:
        function: takes the inputs, then its parameters.
        inputs: names of the inputs, for messages.
        section: name of the config section with the keys.
        node: that section.
        keys: keys by parameter, where they are named otherwise.

    Returns:
        The values by parameter.

    Raises:
        ConfigError: a parameter has neither key nor default, or the function does not take the
            inputs.
    """
    keys = keys or {}
    signature = inspect.signature(function)
    name = getattr(function, "__name__", repr(function))
    params = {}
    for index, parameter in enumerate(signature.parameters.values()):
        is_input = index < len(inputs) and parameter.kind is not parameter.KEYWORD_ONLY
        if is_input or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        key = keys.get(parameter.name, parameter.name.upper())
        if key in node:
            params[parameter.name] = node[key]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"{section}.{key} is missing, which the parameter {parameter.name!r} of {name} "
                "takes: declare the key (docs/extending.md), or give the parameter a default"
            )
    try:
        signature.bind(*inputs, **params)
    except TypeError as error:
        raise ConfigError(
            f"{section} chooses {name}{signature}, which must take {', '.join(inputs)} and then "
            f"its parameters: {error}"
        ) from error
    return params


def backbone_sections(cfg: CfgNode) -> tuple[str, ...]:
    """Return the sections of a config that describe its backbone, by the backbone's name.

    The sections that a backbone of the user reads are unknown: then these are `OF_USER`.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY or is_of_user(BACKBONE_REGISTRY.get(name)):
        return OF_USER
    return "MODEL.BACKBONE", _SECTIONS.get(name, "MODEL.RESNETS"), "MODEL.FPN"
