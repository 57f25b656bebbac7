"""Loading configs: defaults, YAML files and overrides."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from solo_d2.config.defaults import add_solo_config
from solo_d2.config.extensions import ADDED_KEYS
from solo_d2.config.rules import MERGE_ERRORS, merge_reason
from solo_d2.utils.errors import ConfigError, listed, shown
from solo_d2.utils.user_code import from_user_code


def default_config() -> CfgNode:
    """Return Detectron2's config with our keys and those of `register_config`."""
    cfg = get_cfg()
    for add_keys in (add_solo_config, *ADDED_KEYS):
        add_keys(cfg)
    return cfg


def configs_folder() -> Path:
    """Return the folder of this project's configs: inside an installed package, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config_file(config_file: str) -> str:
    """Return the path of a config; ConfigError if it does not exist.

    Args:
        config_file: path or URL. If the path does not exist, this project's configs are searched,
            with or without the prefix "configs/".
    """
    if not config_file:
        raise ConfigError("No config is given: pass one of configs/ with --config-file FILE")
    if config_file.endswith(".py"):
        raise ConfigError(
            f"{config_file} is a lazy config: run tools/lazyconfig_train_net.py, or pass YAML"
        )
    if "://" in config_file or Path(config_file).is_file():
        return config_file
    name = config_file.removeprefix("configs/")
    own = configs_folder() / name
    if own.is_file():
        return str(own)
    raise ConfigError(
        f"The config file {config_file} does not exist, nor is {name} in {configs_folder()}"
    )


class _CheckedFiles(CfgNode):
    """Reads a config and its bases; ConfigError for repeated keys, of which YAML keeps the last."""

    @classmethod
    def _open_cfg(cls, filename: str) -> StringIO:
        with super()._open_cfg(filename) as file:
            text = file.read()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{filename} has no keys: a config consists of lines KEY: VALUE")
        _require_unique_keys(root, filename, "")
        return StringIO(text)


def _require_unique_keys(node: yaml.MappingNode, file: str, prefix: str) -> None:
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            raise ConfigError(
                f"{file} has {name} twice, in lines {lines[name]} and {line}: merge them, as YAML "
                "ignores all but the last"
            )
        lines[name] = line
        if isinstance(value, yaml.MappingNode):
            _require_unique_keys(value, file, f"{name}.")


def load_config(config_file: str, overrides: Sequence[Any] = ()) -> CfgNode:
    """Load a YAML config on top of the defaults of Detectron2 and this project.

    Args:
        config_file: see `find_config_file`; YAML that repeats keys or would run code is
            rejected.
        overrides: see `override`.

    Raises:
        ConfigError: the file or an override is invalid; the message names it.
    """
    config_file = find_config_file(config_file)
    cfg = default_config()
    try:
        _CheckedFiles.load_yaml_with_base(config_file)
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except ConfigError:
        raise
    except (*MERGE_ERRORS, OSError, yaml.YAMLError) as error:
        if from_user_code(error):  # such as a handler of URLs
            raise
        raise ConfigError(f"{config_file}: {merge_reason(error, cfg)}") from error
    override(cfg, overrides)
    return cfg


def override(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Change keys of a config, in place.

    Args:
        cfg: a config that is not frozen.
        overrides: key, value, key, value, ...; values as Python objects or as text.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    options = [x for x in overrides if isinstance(x, str) and x.startswith("--")]
    if options:
        raise ConfigError(f"{listed(options)} must stand before the overrides KEY VALUE")
    try:
        cfg.merge_from_list(list(overrides))
    except MERGE_ERRORS as error:
        given = shown(" ".join(x if isinstance(x, str) else shown(x) for x in overrides))
        reason = merge_reason(error, cfg)
        raise ConfigError(f"The overrides {given} can't be used: {reason}") from error
