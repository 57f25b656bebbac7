"""Checks of config keys: types by their defaults, ranges and choices by tables of rules.

yacs checks types of values from YAML and the command line, except None and elements of lists.
These checks cover them too, and values set in Python, when something is built.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from solo_d2.config import default_config
from solo_d2.config.extensions import ADDED_KEYS
from solo_d2.config.rules import Rule, leaves, require, wrong_type
from solo_d2.utils.errors import ConfigError

# Example for keys with values of several types, which are checked where they are read.
ANY = object()
# Examples that replace defaults which do not show the type of values or elements.
EXAMPLES = {
    "TEST.SPEED.FUSE_BN": ANY,
    "TEST.SPEED.CHANNELS_LAST": ANY,
    "TEST.SPEED.WINOGRAD": ANY,
    "SOLVER.WINOGRAD": ANY,
    "SOLVER.RECOMPUTE": ANY,
    "MODEL.SOLO.SCALE_RANGES": [[1.0]],  # any numbers
    "MODEL.WEIGHTS_ALLOW": [""],
    "MODEL.FPN.IN_FEATURES": [""],
    "DATASETS.TRAIN": [""],
    "DATASETS.TEST": [""],
}


def check_config(
    cfg: Mapping[str, Any], sections: Collection[str], rules: Mapping[str, Rule]
) -> None:
    """Raise a ConfigError for the first key that is missing or has an invalid value.

    Args:
        cfg: a config.
        sections: sections to check; may contain full names of keys.
        rules: rules by full names of keys of these sections.
    """
    values = dict(leaves(cfg))
    for key, example in _examples(len(ADDED_KEYS)).items():
        if not any(key == section or key.startswith(f"{section}.") for section in sections):
            continue
        if key not in values:
            raise ConfigError(
                f"{key} is missing: start from solo_d2.config.default_config(), or from "
                "detectron2.config.get_cfg() and add_solo_config(cfg)"
            )
        allowed = None if example is ANY else wrong_type(values[key], example)
        require(allowed is None, key, values[key], str(allowed))
    for key, rule in rules.items():
        require(rule.holds(values[key]), key, values[key], rule.allowed)


@cache
def _examples(_num_added: int) -> dict[str, Any]:
    return {**dict(leaves(default_config())), **EXAMPLES}
