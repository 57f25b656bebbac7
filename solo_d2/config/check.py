"""Checks the keys of a config: types by the defaults, ranges and choices by tables of rules.

A config comes from YAML, from a command line or from Python code. yacs compares types at the first
two, but lets None and the elements of lists pass; here all are compared, when something is built.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from solo_d2.config import default_config
from solo_d2.config.extensions import ADDED_KEYS
from solo_d2.config.rules import Rule, leaves, require, wrong_type
from solo_d2.utils.errors import ConfigError

# The example of a key whose values have several types; what reads it knows them.
ANY = object()
# In the place of defaults that do not tell the type of values or elements.
EXAMPLES = {
    "TEST.SPEED.FUSE_BN": ANY,
    "TEST.SPEED.CHANNELS_LAST": ANY,
    "MODEL.SOLO.SCALE_RANGES": [[1.0]],  # any numbers
    "MODEL.WEIGHTS_ALLOW": [""],
    "MODEL.FPN.IN_FEATURES": [""],
    "DATASETS.TRAIN": [""],
    "DATASETS.TEST": [""],
}


def check_config(
    cfg: Mapping[str, Any], sections: Collection[str], rules: Mapping[str, Rule]
) -> None:
    """Raise a ConfigError for the first key that is missing or has a wrong value.

    Args:
        cfg: a config.
        sections: whose keys are looked at; a key in full is a section of its own.
        rules: by the full names of keys of these sections.
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
