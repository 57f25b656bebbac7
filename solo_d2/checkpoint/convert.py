"""Conversion of weights of any known format to a checkpoint of this project with its config."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

import solo_d2.modeling  # noqa: F401  (registers the models)
from solo_d2.checkpoint.derive import class_names, derive_config, settings_in_text
from solo_d2.checkpoint.formats import FORMATS, Conversion, Format, recognise
from solo_d2.checkpoint.matching import Match, match
from solo_d2.checkpoint.reading import read_checkpoint
from solo_d2.checkpoint.saved_classes import KEY
from solo_d2.config import configs_folder, load_config
from solo_d2.data.classes import Category, dataset_categories, is_category_list, make_categories
from solo_d2.utils.errors import ConfigError, listed
from solo_d2.utils.files import describe, save_text, whole_file
from solo_d2.utils.user_code import from_user_code

_HEAD = "# Weights converted from"
_COCO = "coco_2017_val"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """Result of a conversion, to be reported and written."""

    source: Format
    conversion: Conversion
    base: Path  # config for settings that the weights do not determine
    settings: dict[str, Any]  # config keys that differ from `base`
    classes: list[Category]  # empty if unknown
    match: Match  # comparison with the model of the config

    def report(self) -> Iterator[str]:
        """Yield lines on what was recognized, mapped, left over and taken from the base config."""
        origins, ignored = self.conversion.origins, self.conversion.ignored
        renamed = sum(name != origin for name, origin in origins.items())
        yield f"format: {self.source.title}"
        yield f"mapped: {len(origins)} parameters, {renamed} of them renamed"
        yield f"ignored: {_count(ignored)}"
        yield f"missing: {_count(self.match.fresh)}"
        left = [name for name in self.conversion.state if name not in self.match.loadable]
        yield f"left over: {_count(left)}"
        if self.source.whole:
            names = ", ".join(category["name"] for category in self.classes)
            yield f"classes: {names or 'no names in the file'}"
            if self.classes:
                yield f"category ids: {', '.join(str(x['id']) for x in self.classes)}"
        yield f"config: {self.base}, with {len(self.settings)} keys changed"
        others = [*("NUM_GRIDS", "SCALE_RANGES"), "thresholds, sizes of images, schedule"]
        others = [key for key in others if f"MODEL.SOLO.{key}" not in self.settings]
        yield f"not in the weights, taken from that config: {', '.join(others)}"


def plan_conversion(
    file: str | Path, base: str | Path | None = None, *, allow: Sequence[str] = ()
) -> Plan:
    """Read a file, rename its parameters, find its config and check that they match.

    Args:
        file: weights of any known format, a file or URL.
        base: config to start from; None selects the one of configs/coco that differs least.
        allow: patterns of parameters that may be missing, unexpected or of another shape.

    Raises:
        ConfigError: the file can't be read or converted, or does not fit; the message names it.
    """
    try:
        checkpoint = read_checkpoint(PathManager.get_local_path(str(file)))
        source = recognise(checkpoint["model"])
        if source is None:
            known = "; ".join(known.title for known in FORMATS)
            raise ConfigError(f"its format is unknown; known are {known}")
        conversion = source.convert(checkpoint["model"])
        derived = derive_config(conversion.state)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (OSError, AssertionError, LookupError, ValueError) as error:
        # The first two are raised by the network; a missing parameter is a KeyError.
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    wanted = {**settings_in_text(checkpoint), **source.settings, **derived}
    chosen = Path(base) if base else _nearest_config(derived)
    cfg = load_config(str(chosen))
    settings = {key: value for key, value in wanted.items() if not _same(_get(cfg, key), value)}
    classes: list[Category] = []
    if source.whole:
        classes = _find_classes(checkpoint, derived["MODEL.SOLO.NUM_CLASSES"])
        settings |= {"MODEL.CLASSES": classes} if classes else {}
        if classes != dataset_categories(_COCO):
            # The model was trained on another data set than that of the config.
            settings |= {"DATASETS.TRAIN": [], "DATASETS.TEST": []}
    if allow:
        settings["MODEL.WEIGHTS_ALLOW"] = list(allow)
    try:
        model = _build(cfg, settings)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, ConfigError) and from_user_code(error):
            raise
        raise ConfigError(f"{file}: no model can be built for these weights: {error}") from error
    found = match(conversion.state, model, source, allow=allow)
    problem = found.problem()
    if problem:
        raise ConfigError(f"{file} does not fit the model of {chosen}: {problem}")
    return Plan(source, conversion, chosen, settings, classes, found)


def write_conversion(plan: Plan, output: str | Path) -> Path:
    """Write checkpoint and config, each atomically.

    Args:
        plan: the conversion.
        output: the checkpoint, ending in .pth; the config has the same name, ending in .yaml.

    Returns:
        The path of the config.
    """
    output = Path(output).absolute()
    config = output.with_suffix(".yaml")
    if output.suffix != ".pth":
        raise ConfigError(f"{output} must end in .pth")
    if config.exists() and not config.read_text(encoding="utf-8").startswith(_HEAD):
        raise ConfigError(
            f"{config} already exists and was not written by this command: choose another name"
        )
    state = {name: value.contiguous() for name, value in plan.match.loadable.items()}
    classes = {KEY: plan.classes} if plan.classes else {}
    try:
        # torch reports a full disk only for open files.
        with whole_file(output) as temporary, open(temporary, "wb") as file:
            torch.save({"model": state, **classes}, file)
        save_text(config, _yaml(plan, output))
    except OSError as error:
        raise ConfigError(f"{output} can't be written: {describe(error)}") from error
    return config


def _yaml(plan: Plan, weights: Path) -> str:
    base = str(plan.base.absolute())
    if weights.is_relative_to(ROOT):
        base = os.path.relpath(base, weights.parent)
    tree: dict[str, Any] = {"_BASE_": base}
    for key, value in {"MODEL.WEIGHTS": str(weights), **plan.settings}.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        # YAML has no tuples; Detectron2 parses them from text.
        node[last] = "()" if path == ["DATASETS"] else value
    head = f"{_HEAD} {plan.source.title}.\n"
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)


def _nearest_config(derived: Mapping[str, Any]) -> Path:
    """Return the config of configs/coco with the same head that differs in the fewest keys."""

    def difference(item: tuple[Path, CfgNode]) -> tuple[Any, ...]:
        path, cfg = item
        differing = [key for key, value in derived.items() if not _same(_get(cfg, key), value)]
        # Ties: the usual schedule, and the large images of the paper.
        other_head = "MODEL.SOLO.HEAD.NAME" in differing
        return other_head, len(differing), "_3x" not in path.name, path.name

    folder = configs_folder() / "coco"
    configs = _load_configs(folder)
    if not configs:
        raise ConfigError(f"There are no configs in {folder}: pass one with --config-file")
    return min(configs.items(), key=difference)[0]


@functools.cache
def _load_configs(folder: Path) -> dict[Path, CfgNode]:
    return {path: load_config(str(path)) for path in folder.glob("*.yaml")}


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def _same(a: Any, b: Any) -> bool:
    """Compare values, with lists equal to tuples."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _find_classes(checkpoint: Mapping[str, Any], number: int) -> list[Category]:
    """Return the classes saved with weights, or COCO's if the names or their number match.

    Classes of which only names are saved get ids from 1.
    """
    saved = checkpoint.get(KEY)
    if saved and is_category_list(saved):
        return list(saved)
    names, coco = class_names(checkpoint), dataset_categories(_COCO)
    if number == len(coco) and names in ([], [category["name"] for category in coco]):
        return coco
    return make_categories(names, range(1, number + 1)) if len(names) == number else []


def _build(cfg: CfgNode, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict of the model on the device "meta", for its shapes."""
    flat = [part for item in settings.items() if item[0][:8] != "DATASETS" for part in item]
    cfg = cfg.clone()
    # Allocates no memory: the sizes come from an untrusted file.
    cfg.merge_from_list([*flat, "MODEL.DEVICE", "meta"])
    cfg.MODEL.SOLO.NUM_CLASSES = cfg.MODEL.SOLO.NUM_CLASSES or 1  # unknown for a backbone
    with torch.device("meta"):
        return dict(build_model(cfg).state_dict())


def _count(names: Sequence[str]) -> str:
    return f"{len(names)}: {listed(names, 5)}" if names else "nothing"
