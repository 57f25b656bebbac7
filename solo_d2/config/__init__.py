"""Config keys with their defaults, and functions to load, override and check configs."""

from solo_d2.config.defaults import add_solo_config
from solo_d2.config.extensions import add_import_argument, register_config
from solo_d2.config.files import (
    configs_folder,
    default_config,
    find_config_file,
    load_config,
    override,
)

__all__ = [
    "add_import_argument",
    "add_solo_config",
    "configs_folder",
    "default_config",
    "find_config_file",
    "load_config",
    "override",
    "register_config",
]
