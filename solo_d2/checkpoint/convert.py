"""From a file of any source to a checkpoint of this project with its config."""

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
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import describe, save_text, whole_file
from solo_d2.utils.user_code import from_user_code

_HEAD = "# Weights converted from"
_COCO = "coco_2017_val"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What is to be written, and what is reported of it."""

    source: Format
    conversion: Conversion
    base: Path  # the config that gives what the weights do not decide
    settings: dict[str, Any]  # config keys that differ from it
    classes: list[Category]  # empty if they are unknown
    match: Match  # with the model of the config

    def report(self) -> Iterator[str]:
        """What was recognised, mapped, left over and taken from elsewhere, line by line."""
        origins, ignored = self.conversion.origins, self.conversion.ignored
        renamed = sum(name != origin for name, origin in origins.items())
        yield f"format: {self.source.title}"
        yield f"mapped: {len(origins)} parameters, {renamed} of them renamed"
        yield f"ignored: {_names(ignored)}"
        yield f"missing: {_names(self.match.fresh)}"
        left = [name for name in self.conversion.state if name not in self.match.loadable]
        yield f"left over: {_names(left)}"
        if self.source.whole:
            names = ", ".join(category["name"] for category in self.classes)
            yield f"classes: {names or 'no names in the file'}"
            if self.classes:
                yield f"category ids: {', '.join(str(x['id']) for x in self.classes)}"
        yield f"config: {self.base}, with {len(self.settings)} keys changed"
        others = [*("NUM_GRIDS", "SCALE_RANGES"), "thresholds, sizes of images, schedule"]
        others = [key for key in others if f"MODEL.SOLO.{key}" not in self.settings]
        yield f"not in the weights, so as in that config unless listed: {', '.join(others)}"


def plan_conversion(
    file: str | Path, base: str | Path | None = None, *, allow: Sequence[str] = ()
) -> Plan:
    """Read a file, rename what it holds, find its config and check that both fit.

    Args:
        file: weights of any known format, a file or URL.
        base: config to start from; None chooses the one of configs/coco that differs least.
        allow: patterns of parameters that may be missing, left over or of another shape.

    Raises:
        ConfigError: the file can't be read or converted, or does not fit; the message names it.
    """
    try:
        checkpoint = read_checkpoint(PathManager.get_local_path(str(file)))
        source = recognise(checkpoint["model"])
        if source is None:
            known = "; ".join(known.title for known in FORMATS)
            raise ConfigError(f"its names are of no known format ({known})")
        conversion = source.convert(checkpoint["model"])
        derived = derive_config(conversion.state)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (OSError, AssertionError, LookupError, ValueError) as error:
        # The first two are the network's; a name that is missing among others is a KeyError.
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
            # The data set of the config is not the one that they were trained on.
            settings |= {"DATASETS.TRAIN": [], "DATASETS.TEST": []}
    if allow:
        settings["MODEL.WEIGHTS_ALLOW"] = list(allow)
    try:
        model = _build(cfg, settings)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, ConfigError) and from_user_code(error):
            raise
        raise ConfigError(f"{file}: no model has weights like these: {error}") from error
    found = match(conversion.state, model, source, allow=allow)
    problem = found.problem()
    if problem:
        raise ConfigError(f"{file} does not fit the model of {chosen}: {problem}")
    return Plan(source, conversion, chosen, settings, classes, found)


def write_conversion(plan: Plan, output: str | Path) -> Path:
    """Write checkpoint and config, each atomically.

    Args:
        plan: what to write.
        output: the checkpoint, ending in .pth; the config has the same name, ending in .yaml.

    Returns:
        The config.
    """
    output = Path(output).absolute()
    config = output.with_suffix(".yaml")
    if output.suffix != ".pth":
        raise ConfigError(f"{output} must end in .pth")
    if config.exists() and not config.read_text(encoding="utf-8").startswith(_HEAD):
        raise ConfigError(
            f"{config} is there already, and not by this command: choose another name"
        )
    state = {name: value.contiguous() for name, value in plan.match.loadable.items()}
    classes = {KEY: plan.classes} if plan.classes else {}
    try:
        # Of a full disk torch tells only if the file is open.
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
        # YAML has no tuples; Detectron2 reads them from text.
        node[last] = "()" if path == ["DATASETS"] else value
    head = f"{_HEAD} {plan.source.title}.\n"
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)


def _nearest_config(derived: Mapping[str, Any]) -> Path:
    """Of configs/coco the one with the same head that differs in the fewest keys."""

    def difference(item: tuple[Path, CfgNode]) -> tuple[Any, ...]:
        path, cfg = item
        differing = [key for key, value in derived.items() if not _same(_get(cfg, key), value)]
        # Of equals the usual schedule, and the paper's large images.
        other_head = "MODEL.SOLO.HEAD.NAME" in differing
        return other_head, len(differing), "_3x" not in path.name, path.name

    folder = configs_folder() / "coco"
    configs = _load_configs(folder)
    if not configs:
        raise ConfigError(f"There are no configs in {folder}: name one by --config-file")
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
    """Equality that does not tell lists from tuples."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _find_classes(checkpoint: Mapping[str, Any], number: int) -> list[Category]:
    """The classes of weights: those saved with them, or COCO's where the names or their number fit.

    Where only names are saved they are numbered from 1.
    """
    saved = checkpoint.get(KEY)
    if saved and is_category_list(saved):
        return list(saved)
    names, coco = class_names(checkpoint), dataset_categories(_COCO)
    if number == len(coco) and names in ([], [category["name"] for category in coco]):
        return coco
    return make_categories(names, range(1, number + 1)) if len(names) == number else []


def _build(cfg: CfgNode, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict of the model: shapes alone, on the device "meta"."""
    flat = [part for item in settings.items() if item[0][:8] != "DATASETS" for part in item]
    cfg = cfg.clone()
    # Without memory: the sizes are those that a file of anybody says.
    cfg.merge_from_list([*flat, "MODEL.DEVICE", "meta"])
    cfg.MODEL.SOLO.NUM_CLASSES = cfg.MODEL.SOLO.NUM_CLASSES or 1  # a backbone decides none
    with torch.device("meta"):
        return dict(build_model(cfg).state_dict())


def _names(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    shown = ", ".join(names[:5])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > 5 else "")
