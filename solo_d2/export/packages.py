"""The packages that only exported models need."""

from importlib.util import find_spec

from solo_d2.utils.errors import ConfigError


def require_packages(*names: str) -> None:
    """Raise a ConfigError that says how to install what is missing."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The package {' and '.join(missing)} is missing: pip install 'solo_d2[export]'"
        )
