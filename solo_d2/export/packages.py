"""The packages that only exported models need."""

from importlib.util import find_spec

import torch

from solo_d2.errors import ConfigError

# Earlier ones fail at divisions by a free size.
OLDEST_TORCH = (2, 7)


def require_packages(*names: str) -> None:
    """Raise a ConfigError that says how to install what is missing."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The package {' and '.join(missing)} is missing: pip install 'solo_d2[export]'"
        )


def require_torch() -> None:
    """Raise a ConfigError if this version of torch cannot export the models."""
    if torch.__version__ < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise ConfigError(f"Export needs torch {needed} or later, and this is {torch.__version__}")
